//! moto with its IAM checks on: signatures are right, and a missing permission is told as such.

use data_encoding::{BASE64, HEXUPPER};
use serde_json::json;

use crate::support::{
    kms::Context,
    moto::{Moto, MotoServer},
    stage::{Stage, random, simple},
};

/// Everything that is set up before moto begins to check.
struct Cloud {
    moto: MotoServer,
    arn: String,
    ciphertext: Vec<u8>,
    secret: Vec<u8>,
    /// Access key id and secret of the user that may.
    may: (String, String),
    /// Of one that may do everything but Decrypt.
    may_not: (String, String),
}

/// A form call of moto's IAM; the signature is not looked at yet.
fn iam(url: &str, fields: &[(&str, &str)]) -> String {
    use std::io::{Read, Write};
    let address = url.trim_start_matches("http://");
    let escape = |text: &str| -> String {
        let hex = HEXUPPER.encode(text.as_bytes());
        hex.as_bytes()
            .chunks(2)
            .flat_map(|pair| ['%', char::from(pair[0]), char::from(pair[1])])
            .collect()
    };
    let body: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", escape(value)))
        .collect();
    let body = body.join("&") + "&Version=2010-05-08";
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST / HTTP/1.1\r\nhost: iam.amazonaws.com\r\nconnection: close\r\ncontent-length: {}\r\n\
         content-type: application/x-www-form-urlencoded\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=AKIASETUP/20260101/us-east-1/iam/aws4_request, \
         SignedHeaders=host, Signature=0\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

fn element(xml: &str, name: &str) -> String {
    let start = xml.find(&format!("<{name}>")).unwrap() + name.len() + 2;
    let end = xml[start..].find("</").unwrap();
    xml[start..start + end].to_owned()
}

fn user(url: &str, name: &str, actions: &str) -> (String, String) {
    iam(url, &[("Action", "CreateUser"), ("UserName", name)]);
    let policy = format!(
        "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Effect\":\"Allow\",\"Action\":{actions},\"Resource\":\"*\"}}]}}"
    );
    iam(
        url,
        &[
            ("Action", "PutUserPolicy"),
            ("UserName", name),
            ("PolicyName", "p"),
            ("PolicyDocument", &policy),
        ],
    );
    let key = iam(url, &[("Action", "CreateAccessKey"), ("UserName", name)]);
    (element(&key, "AccessKeyId"), element(&key, "SecretAccessKey"))
}

async fn cloud() -> Cloud {
    // moto counts the calls that it does not check: two users at three calls each, CreateKey, Encrypt.
    let moto = MotoServer::start(8);
    let may = user(&moto.url, "may", "[\"kms:*\"]");
    let may_not = user(&moto.url, "may-not", "[\"kms:DescribeKey\"]");
    let kms = Moto::at(&moto.url, "us-east-1", &may.0, &may.1);
    let arn = kms.key().await;
    let secret = random(32);
    let ciphertext = kms.encrypt(&arn, &secret, &Context::new()).await;
    // From here on it checks: a wrong secret is refused.
    let wrong = Moto::at(&moto.url, "us-east-1", &may.0, "wrong");
    let refused = wrong.client().describe_key().key_id(&arn).send().await;
    assert!(refused.is_err(), "moto checks signatures now");
    Cloud {
        moto,
        arn,
        ciphertext,
        secret,
        may,
        may_not,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_right_and_refusals_are_told_as_what_they_are() {
    let stage = Stage::new("moto-auth").await;
    let cloud = cloud().await;
    let _operator = stage
        .operator()
        .env("AWS_ENDPOINT_URL_KMS", &cloud.moto.url)
        .env("AWS_ENDPOINT_URL_STS", &cloud.moto.url)
        .start();
    stage.credentials("may", &cloud.may.0, &cloud.may.1).await;
    stage
        .credentials("may-not", &cloud.may_not.0, &cloud.may_not.1)
        .await;
    stage
        .credentials("wrong", &cloud.may.0, "wrong-secret-access-key")
        .await;
    stage.credentials("unknown", "AKIAUNKNOWN000000000", "x").await;
    for name in ["may", "may-not", "wrong", "unknown"] {
        let mut spec = simple(&cloud.arn, &cloud.ciphertext, &format!("out-{name}"));
        spec["seals"][0]["awskms"]["credentials"] = json!({"secretRef": {"name": name}});
        spec["keys"][0]["wrapped"][0]["inline"] = json!(BASE64.encode(&cloud.ciphertext));
        stage.apply(name, &spec).await;
    }
    stage.delivered("out-may", &[("root", &cloud.secret)]).await;
    stage.ready("may").await;
    let message = stage.not_ready("may-not", "AccessDenied").await;
    assert!(
        message.contains("kms:Decrypt"),
        "the missing permission is named: {message}"
    );
    stage.not_ready("wrong", "CredentialsRejected").await;
    stage.not_ready("unknown", "CredentialsRejected").await;
    for name in ["may-not", "wrong", "unknown"] {
        assert_eq!(stage.secret(&format!("out-{name}")).await, None);
    }
    // The admin grants it and the credentials are mended: the operator comes back by itself.
    stage.credentials("wrong", &cloud.may.0, &cloud.may.1).await;
    stage.delivered("out-wrong", &[("root", &cloud.secret)]).await;
}
