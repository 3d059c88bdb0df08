//! ManagedKeys with a KMS that imports: what was brought there is proven to be what lies in the store, and boto3 uses it.

use serde_json::{Value, json};

use crate::support::{
    localstack::LocalStack,
    moto::Moto,
    operator::Operator,
    plane::{eventually, within},
    stage::{Stage, condition, named, repository, speaks_of_now},
};

/// Waits until a ManagedKey is Ready for its current generation.
pub async fn ready(stage: &Stage, name: &str) -> Value {
    within(
        std::time::Duration::from_mins(5),
        &format!("{name} Ready"),
        async || {
            let key = managed_key(stage, name).await;
            let ready = condition(&key, "Ready");
            if ready["status"] == "True" && speaks_of_now(&key) {
                Ok(key)
            } else {
                Err(format!("{:#}", key["status"]))
            }
        },
    )
    .await
}

/// A ManagedKey.
pub async fn managed_key(stage: &Stage, name: &str) -> Value {
    stage
        .plane
        .get("ManagedKey", &stage.namespace, name)
        .await
        .unwrap_or_else(|| panic!("no ManagedKey {name}"))
}

/// Applies a ManagedKey.
pub async fn apply(stage: &Stage, name: &str, spec: &Value) -> Value {
    let mut object = stage.object("autounseal.dev/v1alpha1", "ManagedKey", name);
    object["spec"] = spec.clone();
    stage.plane.apply(&object).await
}

fn operator(stage: &Stage, kms: &LocalStack) -> Operator {
    stage
        .operator()
        .env("AWS_ENDPOINT_URL_KMS", &kms.url)
        .env("AWS_ENDPOINT_URL_STS", &kms.url)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_brings_its_key_to_aws_and_three_rotations_move_the_alias() {
    let localstack = LocalStack::start();
    let stage = Stage::bare("managed", &json!({})).await;
    stage
        .credentials("aws-credentials", "AKIAINTEGRATIONTEST0", "integration-secret")
        .await;
    let seals = Moto::at(
        &localstack.url,
        "us-west-2",
        "AKIAINTEGRATIONTEST0",
        "integration-secret",
    );
    let seal = seals.key().await;
    seals.alias("alias/platform", &seal).await;
    let text = std::fs::read_to_string(repository("examples/08-managedkey-aws.yaml")).unwrap();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let mut object: Value = serde::Deserialize::deserialize(document).unwrap();
        object["metadata"]["namespace"] = json!(stage.namespace);
        stage.plane.apply(&object).await;
    }
    let running = operator(&stage, &localstack).start();
    let first = ready(&stage, "payments").await;
    let told = named(&first["status"]["distributions"], "us-west");
    let alias = told["alias"].as_str().unwrap().to_owned();
    let since = first["metadata"]["creationTimestamp"].as_str().unwrap();
    assert!(alias.starts_with("alias/hashicorp/payments-"), "{alias}");
    let stamp: i64 = alias.rsplit('-').next().unwrap().parse().unwrap();
    let made = since.parse::<jiff::Timestamp>().unwrap().as_second();
    assert!((made - 1..made + 600).contains(&stamp), "{alias} of {since}");
    assert_eq!(told["currentVersion"], 1);

    // What a user of the SDK for Python does with the alias; and the key's tags.
    let used = localstack.python(&format!(
        "k = kms('us-west-1')\n\
         c = k.encrypt(KeyId='{alias}', Plaintext=b'card', EncryptionContext={{'a': 'b'}})\n\
         m = k.describe_key(KeyId='{alias}')['KeyMetadata']\n\
         t = {{t['TagKey']: t['TagValue'] for t in k.list_resource_tags(KeyId=m['KeyId'])['Tags']}}\n\
         say({{'blob': base64.b64encode(c['CiphertextBlob']).decode(), 'meta': m, 'tags': t}})"
    ));
    let key_id = told["versions"][0]["keyID"].clone();
    assert_eq!(used["meta"]["Arn"], key_id);
    assert_eq!(used["meta"]["Origin"], "EXTERNAL");
    assert_eq!(used["meta"]["KeyState"], "Enabled");
    assert!(used["meta"]["ValidTo"].is_null(), "{used}");
    assert_eq!(used["tags"]["team"], "payments");

    let mut expected = vec![key_id];
    for rotation in 2..=4 {
        let patch = json!({"spec": {"rotation": {"trigger": rotation.to_string()}}});
        stage
            .plane
            .patch("ManagedKey", &stage.namespace, "payments", &patch)
            .await;
        let now = eventually(&format!("version {rotation}"), async || {
            let now = ready(&stage, "payments").await;
            let told = named(&now["status"]["distributions"], "us-west");
            if told["currentVersion"] == rotation {
                Ok(told)
            } else {
                Err(format!("{now:#}"))
            }
        })
        .await;
        assert_eq!(now["alias"], alias, "the alias never changes");
        expected.push(now["versions"][rotation - 1]["keyID"].clone());
    }
    // Every key in the KMS is one that the status tells, and the alias points at the last.
    let all = localstack.python(
        "k = kms('us-west-1')\n\
         keys = [e['KeyArn'] for e in k.list_keys()['Keys']]\n\
         say({'keys': keys, 'states': [k.describe_key(KeyId=a)['KeyMetadata']['KeyState'] for a in keys], \
         'aliases': [(a['AliasName'], a['TargetKeyId']) for a in k.list_aliases()['Aliases'] if 'hashicorp' in a['AliasName']]})",
    );
    let mut keys: Vec<&str> = all["keys"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let mut told: Vec<&str> = expected.iter().filter_map(Value::as_str).collect();
    let last = told[3].rsplit('/').next().unwrap().to_owned();
    keys.sort_unstable();
    told.sort_unstable();
    assert_eq!(keys, told);
    assert_eq!(all["aliases"], json!([[alias, last]]));
    assert!(
        all["states"]
            .as_array()
            .unwrap()
            .iter()
            .all(|state| state == "Enabled"),
        "{all}"
    );

    // What the first version encrypted opens still, until that is not wanted any more.
    let blob = used["blob"].as_str().unwrap().to_owned();
    let open = format!(
        "k = kms('us-west-1')\n\
         try: say(k.decrypt(CiphertextBlob=base64.b64decode('{blob}'), EncryptionContext={{'a': 'b'}})['Plaintext'].decode())\n\
         except Exception as e: say(type(e).__name__)"
    );
    assert_eq!(localstack.python(&open), "card");
    let patch = json!({"spec": {"minEnabledVersion": 3}});
    stage
        .plane
        .patch("ManagedKey", &stage.namespace, "payments", &patch)
        .await;
    let raised = ready(&stage, "payments").await;
    let told = named(&raised["status"]["distributions"], "us-west");
    let states: Vec<_> = told["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["state"].clone())
        .collect();
    assert_eq!(states, ["Disabled", "Disabled", "Enabled", "Enabled"]);
    assert_eq!(localstack.python(&open), "DisabledException");

    // The policy of the example, confirmed.
    let uid = raised["metadata"]["uid"].clone();
    let confirm = json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": uid}}});
    stage
        .plane
        .patch("ManagedKey", &stage.namespace, "payments", &confirm)
        .await;
    stage
        .plane
        .delete("ManagedKey", &stage.namespace, "payments")
        .await;
    eventually("it is gone", async || {
        match stage.plane.get("ManagedKey", &stage.namespace, "payments").await {
            None => Ok(()),
            Some(left) => Err(format!("{left:#}")),
        }
    })
    .await;
    let states = localstack.python(
        "k = kms('us-west-1')\n\
         say([k.describe_key(KeyId=e['KeyArn'])['KeyMetadata']['KeyState'] for e in k.list_keys()['Keys']])",
    );
    assert_eq!(states, json!(["Disabled", "Disabled", "Disabled", "Disabled"]));
    // The material outlives it.
    let store = stage.whole_secret("payments.managedkey.wrapped").await;
    assert_eq!(store["type"], "autounseal.dev/wrapped");
    running.stop();
}

/// Opens the material that lies in a store by `docs/store.md` alone, and proves that the key in the KMS is that one: what
/// the KMS encrypts opens with it here, what it signs verifies with its public half, what that encrypts opens there.
const PROOF: &str = r"
import struct
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from localstack.services.kms.models import deserialize_ciphertext_blob


def message(data):
    found, at = {}, 0
    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
    while at < len(data):
        tag = number()
        value = number()
        if tag & 7 == 2:
            value, at = data[at : at + value], at + value
        found[tag >> 3] = value
    return found


header = json.loads(base64.b64decode(entries['header']))
record = header['keys']['material']['section']['versions']['1']['copies']['aws']
values = ['1', 'autounseal', 'ManagedKey', namespace, name, 'managed', 'material', '1']
parts = ['binding', 'domain', 'kind', 'bound-namespace', 'name', 'class', 'item', 'version']
context = {f'autounseal.dev/{part}': value for part, value in zip(parts, values)}
blob = message(base64.b64decode(entries['key.material.v1.aws']))
seal = kms(record['keyID'].split(':')[3])
data_key = seal.decrypt(KeyId=record['keyID'], CiphertextBlob=message(blob[5])[5], EncryptionContext=context)['Plaintext']
additional = b''.join(struct.pack('>I', len(value.encode())) + value.encode() for value in values)
material = AESGCM(data_key).decrypt(blob[2], blob[1], additional)

k = kms('us-west-1')
if name == 'aes':
    made = k.encrypt(KeyId=alias, Plaintext=b'card', EncryptionContext={'a': 'b'})['CiphertextBlob']
    parts = deserialize_ciphertext_blob(made)
    plain = AESGCM(material).decrypt(parts.iv, parts.ciphertext + parts.tag, b'ab')
    # LocalStack pads to blocks before it encrypts.
    say(plain[: -plain[-1]].decode())
else:
    private = serialization.load_der_private_key(material, None)
    public = private.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert k.get_public_key(KeyId=alias)['PublicKey'] == der
    if name == 'rsa-3072':
        # LocalStack's Encrypt with RSA is none, so the other way round: what our public half encrypts opens in the KMS.
        oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
        made = public.encrypt(b'card', oaep)
        opened = k.decrypt(KeyId=alias, CiphertextBlob=made, EncryptionAlgorithm='RSAES_OAEP_SHA_256')
        say(opened['Plaintext'].decode())
    else:
        digest = {'ecdsa-p384': hashes.SHA384, 'ecdsa-p521': hashes.SHA512}.get(name, hashes.SHA256)()
        kind = 'ECDSA_SHA_' if name.startswith('ecdsa') else 'RSASSA_PKCS1_V1_5_SHA_'
        signed = k.sign(KeyId=alias, Message=b'card', MessageType='RAW', SigningAlgorithm=kind + str(digest.digest_size * 8))
        if name.startswith('ecdsa'):
            public.verify(signed['Signature'], b'card', ec.ECDSA(digest))
        else:
            public.verify(signed['Signature'], b'card', padding.PKCS1v15(), digest)
        say('card')
";

#[tokio::test(flavor = "multi_thread")]
async fn each_type_of_key_is_proven_to_be_the_one_that_lies_in_the_store() {
    let localstack = LocalStack::start();
    let stage = Stage::new("managed-types").await;
    let seal = Moto::at(
        &localstack.url,
        "us-west-2",
        "AKIAINTEGRATIONTEST0",
        "integration-secret",
    )
    .key()
    .await;
    let spec = json!({"seals": [{"name": "aws", "awskms": {
        "kmsKeyID": seal, "region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}}}]});
    stage.apply("platform", &spec).await;
    let types = [
        ("aes", "aes256-gcm96", "EncryptDecrypt"),
        ("rsa-2048", "rsa-2048", "SignVerify"),
        ("rsa-3072", "rsa-3072", "EncryptDecrypt"),
        ("rsa-4096", "rsa-4096", "SignVerify"),
        ("ecdsa-p256", "ecdsa-p256", "SignVerify"),
        ("ecdsa-p384", "ecdsa-p384", "SignVerify"),
        ("ecdsa-p521", "ecdsa-p521", "SignVerify"),
    ];
    for (name, kind, usage) in types {
        let spec = json!({
            "type": kind, "usage": usage, "material": {"generate": {}}, "sealConfigRef": {"name": "platform"},
            "distributions": [{"name": "us", "awskms": {"region": "us-west-1", "credentials": {"secretRef": {"name": "aws"}}}}],
        });
        apply(&stage, name, &spec).await;
    }
    let running = operator(&stage, &localstack).start();
    for (name, ..) in types {
        let key = ready(&stage, name).await;
        let alias = named(&key["status"]["distributions"], "us")["alias"].clone();
        let store = stage.whole_secret(&format!("{name}.managedkey.wrapped")).await;
        let script = format!(
            "entries = json.loads({:?})\nnamespace, name, alias = {:?}, {name:?}, {alias}\n{PROOF}",
            store["data"].to_string(),
            stage.namespace
        );
        assert_eq!(localstack.python(&script), "card", "{name}");
    }
    let count = localstack.python("say(len(kms('us-west-1').list_keys()['Keys']))");
    assert_eq!(count, types.len());
    running.stop();
}
