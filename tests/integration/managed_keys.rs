//! ManagedKeys with a KMS that imports: what was brought there is proven to be what lies in the store, and boto3 uses it.

use data_encoding::BASE64;
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
    within(std::time::Duration::from_mins(3), &format!("{name} Ready"), async || {
        let key = managed_key(stage, name).await;
        let ready = condition(&key, "Ready");
        if ready["status"] == "True" && speaks_of_now(&key) {
            Ok(key)
        } else {
            Err(format!("{:#}", key["status"]))
        }
    })
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
    let seals = Moto::at(&localstack.url, "us-west-2", "AKIAINTEGRATIONTEST0", "integration-secret");
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
    let mut keys: Vec<&str> = all["keys"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut told: Vec<&str> = expected.iter().filter_map(Value::as_str).collect();
    let last = told[3].rsplit('/').next().unwrap().to_owned();
    keys.sort_unstable();
    told.sort_unstable();
    assert_eq!(keys, told);
    assert_eq!(all["aliases"], json!([[alias, last]]));
    assert!(all["states"].as_array().unwrap().iter().all(|state| state == "Enabled"), "{all}");

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
    let states: Vec<_> = told["versions"].as_array().unwrap().iter().map(|v| v["state"].clone()).collect();
    assert_eq!(states, ["Disabled", "Disabled", "Enabled", "Enabled"]);
    assert_eq!(localstack.python(&open), "DisabledException");

    // The policy of the example, confirmed.
    let uid = raised["metadata"]["uid"].clone();
    let confirm = json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": uid}}});
    stage
        .plane
        .patch("ManagedKey", &stage.namespace, "payments", &confirm)
        .await;
    stage.plane.delete("ManagedKey", &stage.namespace, "payments").await;
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
    let _ = BASE64;
}
