//! ManagedKeys against a KMS that refuses what AWS refuses, dies in one region, and ends the operator at any call: every
//! key in it is accounted for in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use autounseal::{api::SealConfig, controller::finalize::put_finalizers, kube_ext::names::FINALIZER};
use data_encoding::BASE64;
use futures::{StreamExt, stream};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    managed_keys::{apply, managed_key, ready},
    support::{
        custodian::{Custodian, Kept},
        kms::{Context, Key},
        knife::{Cut, Knife, Side},
        needle::Needle,
        operator::Operator,
        plane::within,
        stage::{Stage, condition, named, random, speaks_of_now},
    },
};

const HOME: &str = "eu-west-1";
const OTHER: &str = "us-west-2";

/// Polls until the probe says yes, with the patience that imports and their pace need on a noisy machine.
async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    within(Duration::from_mins(3), what, probe).await
}

struct Scene {
    stage: Stage,
    aws: Custodian,
    seal: Key,
}

impl Scene {
    async fn new(name: &str) -> Self {
        let stage = Stage::new(name).await;
        let aws = Custodian::start();
        let seal = aws.seals.key();
        let spec = json!({"seals": [{"name": "aws", "awskms": {
            "kmsKeyID": seal.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}}]});
        stage.apply("platform", &spec).await;
        Self { stage, aws, seal }
    }

    fn operator(&self) -> Operator {
        self.stage.operator().env("AWS_ENDPOINT_URL_KMS", self.aws.url())
    }

    async fn apply(&self, spec: &Value) {
        apply(&self.stage, "pay", spec).await;
    }

    async fn patch(&self, patch: Value) {
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        plane.patch("ManagedKey", namespace, "pay", &patch).await;
    }

    async fn delete(&self) {
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        plane.delete("ManagedKey", namespace, "pay").await;
    }

    async fn gone(&self) {
        eventually("the ManagedKey is gone", async || {
            match self
                .stage
                .plane
                .get("ManagedKey", &self.stage.namespace, "pay")
                .await
            {
                None => Ok(()),
                Some(left) => Err(format!("{left:#}")),
            }
        })
        .await;
    }

    /// Waits until Ready is not True for this reason; the message.
    async fn not_ready(&self, reason: &str) -> String {
        within(
            Duration::from_mins(4),
            &format!("not Ready: {reason}"),
            async || {
                let key = managed_key(&self.stage, "pay").await;
                let ready = condition(&key, "Ready");
                if ready["status"] != "True" && ready["reason"] == reason && speaks_of_now(&key) {
                    Ok(ready["message"].as_str().unwrap_or_default().to_owned())
                } else {
                    Err(format!("{:#}", key["status"]))
                }
            },
        )
        .await
    }

    /// Waits until the alias of a distribution stands at this version, and all is well.
    async fn at_version(&self, distribution: &str, version: u32) -> Value {
        within(
            Duration::from_mins(3),
            &format!("version {version}"),
            async || {
                let key = ready(&self.stage, "pay").await;
                let told = named(&key["status"]["distributions"], distribution);
                if told["currentVersion"] == version {
                    Ok(told)
                } else {
                    Err(format!("{:#}", key["status"]))
                }
            },
        )
        .await
    }

    /// Every key of the region is one that the store knows for this distribution, one for each version that was brought
    /// there, with the alias at the newest; and no call was one that no honest client makes. How many there are.
    async fn accounted(&self, distribution: &str, region: &str) -> usize {
        let known = self.written(distribution).await;
        let keys = self.aws.keys(region);
        let arns: Vec<_> = keys.iter().map(|key| key.arn.clone()).collect();
        let written: BTreeMap<u32, String> = known["keys"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(version, key)| (version.parse().unwrap(), key["arn"].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(keys.len(), written.len(), "{arns:?} of {known:#}");
        assert!(
            arns.iter().all(|arn| written.values().any(|known| known == arn)),
            "{arns:?} of {written:?}"
        );
        assert!(keys.iter().all(|key| key.state == "Enabled"), "{keys:?}");
        let materials: BTreeSet<_> = keys.iter().map(|key| key.material.clone()).collect();
        assert_eq!(
            materials.len(),
            keys.len(),
            "each version has material of its own"
        );
        let alias = format!("alias/hashicorp/pay-{}", known["first"]);
        let (_, newest) = written.last_key_value().unwrap();
        assert_eq!(self.aws.alias(region, &alias).as_ref(), Some(newest));
        assert_eq!(self.aws.wrong(), Vec::<String>::new());
        keys.len()
    }

    /// What is written down of a distribution.
    async fn written(&self, distribution: &str) -> Value {
        let store = self.stage.whole_secret("pay.managedkey.wrapped").await;
        let header = BASE64
            .decode(store["data"]["header"].as_str().unwrap().as_bytes())
            .unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        header["keys"]["material"]["section"]["managed"]["distributions"][distribution].clone()
    }
}

fn to(name: &str, region: &str) -> Value {
    json!({"name": name, "awskms": {"region": region, "tags": {"team": "payments"}, "credentials": {"secretRef": {"name": "aws"}}}})
}

fn spec(distributions: &[Value]) -> Value {
    json!({
        "type": "aes256-gcm96", "usage": "EncryptDecrypt", "material": {"generate": {}},
        "sealConfigRef": {"name": "platform"}, "distributions": distributions, "rotation": {"trigger": "1"},
    })
}

fn states(keys: &[Kept]) -> Vec<&'static str> {
    keys.iter().map(|key| key.state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_call_or_write_it_goes_on_and_leaves_no_key_unaccounted_for() {
    let scene = Scene::new("managed-kill").await;
    let knife = Knife::new(scene.stage.plane.client(), None).await;
    let running = knife.start(&scene.operator());
    scene.apply(&spec(&[to("eu", HOME)])).await;
    scene.at_version("eu", 1).await;
    scene.patch(json!({"spec": {"rotation": {"trigger": "2"}}})).await;
    scene.at_version("eu", 2).await;
    running.stop();
    let (calls, writes) = (scene.aws.changes(), knife.writes());
    assert!(calls >= 8, "{calls} calls that change something");
    assert!(writes >= 8, "{:?}", knife.seen());
    assert_eq!(scene.accounted("eu", HOME).await, 2);

    let sides = [Side::Before, Side::After];
    let of_calls = (1..=calls).flat_map(|at| sides.map(|side| (Some((at, side)), None)));
    let of_writes = (1..=writes).flat_map(|write| sides.map(|side| (None, Some(Cut { write, side }))));
    let points: Vec<_> = of_calls.chain(of_writes).collect();
    stream::iter(points)
        .for_each_concurrent(3, |(call, write)| async move {
            let scene = Scene::new("managed-cut").await;
            let knife = Knife::new(scene.stage.plane.client(), write).await;
            if let Some((at, side)) = call {
                scene.aws.cut(at, side);
            }
            let running = knife.start(&scene.operator());
            scene.aws.victim(running.pid());
            scene.apply(&spec(&[to("eu", HOME)])).await;
            let dead = || knife.has_struck() || scene.aws.has_struck();
            // Both versions are made by one operator, up to where it dies.
            eventually("the operator dies, or the first version stands", async || {
                let key = managed_key(&scene.stage, "pay").await;
                let stands = named(&key["status"]["distributions"], "eu")["currentVersion"] == 1;
                (dead() || stands)
                    .then_some(())
                    .ok_or_else(|| format!("{:#}", key["status"]))
            })
            .await;
            scene.patch(json!({"spec": {"rotation": {"trigger": "2"}}})).await;
            eventually("the operator dies, or has nothing more to do", async || {
                let key = managed_key(&scene.stage, "pay").await;
                let stands = named(&key["status"]["distributions"], "eu")["currentVersion"] == 2;
                (dead() || stands)
                    .then_some(())
                    .ok_or_else(|| format!("{:#}", key["status"]))
            })
            .await;
            running.kill();
            scene.aws.another_operator();
            let running = scene.operator().start();
            let key = ready(&scene.stage, "pay").await;
            let made = key["status"]["material"]["version"].as_u64().unwrap();
            // Killed before the first value of the trigger was written down, the second is the first.
            assert!((1..=2).contains(&made), "{call:?} {write:?}: {made} versions");
            scene.at_version("eu", u32::try_from(made).unwrap()).await;
            // A version that was never brought there before the next one was made need not be brought any more.
            let brought = scene.accounted("eu", HOME).await;
            assert!(
                (1..=made).contains(&(brought as u64)),
                "{call:?} {write:?}: {brought} of {made}"
            );
            running.stop();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_regions_one_of_them_down_during_a_rotation() {
    let scene = Scene::new("managed-regions").await;
    let running = scene.operator().start();
    scene.apply(&spec(&[to("eu", HOME), to("us", OTHER)])).await;
    scene.at_version("eu", 1).await;
    scene.at_version("us", 1).await;
    scene.aws.down(OTHER, true);
    scene.patch(json!({"spec": {"rotation": {"trigger": "2"}}})).await;
    let message = scene.not_ready("KMSUnavailable").await;
    assert!(message.contains("\"us\""), "{message}");
    let key = eventually("the region that answers has the new version", async || {
        let key = managed_key(&scene.stage, "pay").await;
        let eu = named(&key["status"]["distributions"], "eu");
        if eu["currentVersion"] == 2 {
            Ok(key)
        } else {
            Err(format!("{:#}", key["status"]))
        }
    })
    .await;
    let us = named(&key["status"]["distributions"], "us");
    assert_eq!(us["currentVersion"], 1, "its alias stays where it was: {us:#}");
    scene.aws.down(OTHER, false);
    scene.at_version("us", 2).await;
    assert_eq!(scene.accounted("eu", HOME).await, 2);
    assert_eq!(scene.accounted("us", OTHER).await, 2);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_region_keys_have_their_material_in_each_replica() {
    let scene = Scene::new("managed-replicas").await;
    let running = scene.operator().start();
    let mut eu = to("eu", HOME);
    eu["awskms"]["multiRegion"] = json!(true);
    eu["awskms"]["replicaRegions"] = json!([OTHER]);
    eu["awskms"]["aliasName"] = json!("alias/pay");
    scene.apply(&spec(&[eu])).await;
    let told = scene.at_version("eu", 1).await;
    assert_eq!(told["replicas"], json!([OTHER]));
    let (primary, replica) = (scene.aws.keys(HOME), scene.aws.keys(OTHER));
    assert_eq!(
        (states(&primary), states(&replica)),
        (vec!["Enabled"], vec!["Enabled"])
    );
    assert_eq!(primary[0].id, replica[0].id);
    assert_eq!(primary[0].material, replica[0].material);
    for (region, key) in [(HOME, &primary[0]), (OTHER, &replica[0])] {
        assert_eq!(
            scene.aws.alias(region, "alias/pay").as_deref(),
            Some(key.arn.as_str())
        );
    }
    // The user's own alias goes when it is not wanted any more; the standard one stays.
    scene
        .patch(
            json!({"spec": {"distributions": [{"name": "eu", "awskms": {"region": HOME, "multiRegion": true,
            "replicaRegions": [OTHER], "credentials": {"secretRef": {"name": "aws"}}}}]}}),
        )
        .await;
    eventually("the alias is gone", async || {
        match scene
            .aws
            .alias(HOME, "alias/pay")
            .or(scene.aws.alias(OTHER, "alias/pay"))
        {
            None => Ok(()),
            Some(left) => Err(left),
        }
    })
    .await;
    ready(&scene.stage, "pay").await;
    assert_eq!(
        (scene.aws.aliases(HOME).len(), scene.aws.aliases(OTHER).len()),
        (1, 1)
    );
    assert_eq!(scene.aws.wrong(), Vec::<String>::new());
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_deletion_policy_with_and_without_a_confirmation() {
    let cases = [
        ("Retain", true, "Enabled"),
        ("Disable", false, "Enabled"),
        ("Disable", true, "Disabled"),
        ("ScheduleDeletion", false, "Enabled"),
        ("ScheduleDeletion", true, "PendingDeletion"),
    ];
    stream::iter(cases)
        .for_each_concurrent(3, |(policy, confirmed, expected)| async move {
            let scene = Scene::new("managed-deletion").await;
            let running = scene.operator().start();
            let mut wanted = spec(&[to("eu", HOME)]);
            wanted["deletion"] = json!({"policy": policy, "pendingWindowDays": 7});
            scene.apply(&wanted).await;
            scene.at_version("eu", 1).await;
            let key = managed_key(&scene.stage, "pay").await;
            let finalizers = key["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
            assert_eq!(finalizers, usize::from(policy != "Retain"), "{policy}");
            if confirmed {
                let uid = key["metadata"]["uid"].clone();
                scene
                    .patch(json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": uid}}}))
                    .await;
            } else {
                // A confirmation of another object's is none.
                let other = json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": "4711"}}});
                scene.patch(other).await;
            }
            ready(&scene.stage, "pay").await;
            scene.delete().await;
            scene.gone().await;
            let keys = scene.aws.keys(HOME);
            assert_eq!(states(&keys), [expected], "{policy}, confirmed: {confirmed}");
            let deleted = policy == "ScheduleDeletion" && confirmed;
            assert_eq!(keys[0].window, deleted.then_some(7));
            assert_eq!(scene.aws.aliases(HOME).len(), usize::from(!deleted), "{policy}");
            if policy != "Retain" && !confirmed {
                let events = scene.stage.events("pay").await;
                assert!(
                    events.iter().any(|event| event.contains("DeletionNotConfirmed")),
                    "{events:?}"
                );
            }
            running.stop();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distribution_that_is_taken_out_follows_the_policy_once_it_is_confirmed() {
    let scene = Scene::new("managed-out").await;
    let running = scene.operator().start();
    let mut wanted = spec(&[to("eu", HOME), to("us", OTHER)]);
    wanted["deletion"] = json!({"policy": "ScheduleDeletion"});
    scene.apply(&wanted).await;
    scene.at_version("us", 1).await;
    wanted["distributions"] = json!([to("eu", HOME)]);
    scene.apply(&wanted).await;
    eventually("it is told that this needs a confirmation", async || {
        let events = scene.stage.events("pay").await;
        let told = events
            .iter()
            .any(|event| event.contains("DeletionNotConfirmed") && event.contains("\"us\""));
        told.then_some(()).ok_or(format!("{events:?}"))
    })
    .await;
    assert_eq!(states(&scene.aws.keys(OTHER)), ["Enabled"]);
    let uid = managed_key(&scene.stage, "pay").await["metadata"]["uid"].clone();
    let confirm = json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": uid}}});
    scene.patch(confirm).await;
    eventually("its key goes", async || {
        let states = states(&scene.aws.keys(OTHER));
        (states == ["PendingDeletion"])
            .then_some(())
            .ok_or(format!("{states:?}"))
    })
    .await;
    assert!(scene.aws.aliases(OTHER).is_empty());
    assert_eq!(states(&scene.aws.keys(HOME)), ["Enabled"], "the other one stays");
    // Taken in again, its own key comes back: no second one is made.
    wanted["distributions"] = json!([to("eu", HOME), to("us", OTHER)]);
    scene.apply(&wanted).await;
    scene.at_version("us", 1).await;
    assert_eq!(scene.accounted("us", OTHER).await, 1);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_tag_leads_to_no_foreign_key_and_a_taken_alias_is_not_moved() {
    let scene = Scene::new("managed-attack").await;
    // The operator dies right after CreateKey: what it made is looked for by its token.
    scene.aws.cut(1, Side::After);
    let running = scene.operator().spawn();
    scene.aws.victim(running.pid());
    scene.apply(&spec(&[to("eu", HOME)])).await;
    eventually("the operator dies", async || {
        scene.aws.has_struck().then_some(()).ok_or_else(String::new)
    })
    .await;
    running.kill();
    scene.aws.another_operator();
    let token = scene.written("eu").await["keys"]["1"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let forged = [("autounseal.dev/create-token", token.as_str())];
    // Keys of other states carry the token, too: none of them is ours.
    let enabled = scene.aws.foreign(HOME, "Enabled", &forged);
    let disabled = scene.aws.foreign(HOME, "Disabled", &forged);
    let twin = scene.aws.foreign(HOME, "PendingImport", &forged);
    let running = scene.operator().start();
    let message = scene.not_ready("CreateTokenAmbiguous").await;
    assert!(message.contains(&twin), "{message}");
    assert!(
        scene.aws.keys(HOME).iter().all(|key| key.material.is_empty()),
        "nothing was imported"
    );
    assert_eq!(scene.aws.count("CreateKey"), 1);
    // One with another origin is none that could be meant.
    scene.aws.change(&twin, |key| key.origin = "AWS_KMS".to_owned());
    let known = scene.written("eu").await;
    let alias = format!("alias/hashicorp/pay-{}", known["first"]);
    scene.aws.set_alias(HOME, &alias, Some(&enabled));
    let message = scene.not_ready("AliasNotOwned").await;
    assert!(message.contains(&alias), "{message}");
    assert_eq!(
        scene.aws.count("CreateKey"),
        1,
        "the key that was made is the one that is used"
    );
    assert_eq!(scene.aws.alias(HOME, &alias).as_deref(), Some(enabled.as_str()));
    // The deletion takes neither the alias nor the foreign keys.
    let uid = managed_key(&scene.stage, "pay").await["metadata"]["uid"].clone();
    scene
        .patch(
            json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": uid}},
            "spec": {"deletion": {"policy": "ScheduleDeletion"}}}),
        )
        .await;
    eventually("the finalizer is there", async || {
        let key = managed_key(&scene.stage, "pay").await;
        let has = key["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        has.then_some(()).ok_or_else(|| format!("{key:#}"))
    })
    .await;
    scene.delete().await;
    scene.gone().await;
    let by_arn: BTreeMap<_, _> = scene
        .aws
        .keys(HOME)
        .into_iter()
        .map(|key| (key.arn.clone(), key.state))
        .collect();
    assert_eq!(by_arn[&enabled], "Enabled");
    assert_eq!(by_arn[&disabled], "Disabled");
    assert_eq!(by_arn[&twin], "PendingImport");
    let deleted = by_arn
        .values()
        .filter(|state| **state == "PendingDeletion")
        .count();
    assert_eq!(deleted, 1, "{by_arn:?}");
    assert_eq!(scene.aws.alias(HOME, &alias).as_deref(), Some(enabled.as_str()));
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_store_leads_to_no_foreign_key() {
    let scene = Scene::new("managed-forged").await;
    let running = scene.operator().start();
    let mut wanted = spec(&[to("eu", HOME)]);
    wanted["deletion"] = json!({"policy": "ScheduleDeletion"});
    scene.apply(&wanted).await;
    scene.at_version("eu", 1).await;
    let foreign = scene.aws.foreign(HOME, "Enabled", &[]);
    let store = scene.stage.whole_secret("pay.managedkey.wrapped").await;
    let header = BASE64
        .decode(store["data"]["header"].as_str().unwrap().as_bytes())
        .unwrap();
    let mut header: Value = serde_json::from_slice(&header).unwrap();
    header["keys"]["material"]["section"]["managed"]["distributions"]["eu"]["keys"]["1"]["arn"] =
        json!(foreign);
    let patch = json!({"data": {"header": BASE64.encode(header.to_string().as_bytes())}});
    let (plane, namespace) = (&scene.stage.plane, &scene.stage.namespace);
    plane
        .patch("Secret", namespace, "pay.managedkey.wrapped", &patch)
        .await;
    scene.not_ready("StoreCorrupt").await;
    let uid = managed_key(&scene.stage, "pay").await["metadata"]["uid"].clone();
    scene
        .patch(json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": uid}}, "spec": {"minEnabledVersion": 1}}))
        .await;
    scene.delete().await;
    eventually(
        "the deletion waits for a store that can be believed",
        async || {
            let events = scene.stage.events("pay").await;
            let told = events
                .iter()
                .any(|event| event.contains("StoreCorrupt") && event.contains("authenticated"));
            told.then_some(()).ok_or(format!("{events:?}"))
        },
    )
    .await;
    assert!(scene.aws.keys(HOME).iter().all(|key| key.state == "Enabled"));
    // The right one back, and the deletion goes its way.
    let put_back = json!({"data": {"header": store["data"]["header"]}});
    plane
        .patch("Secret", namespace, "pay.managedkey.wrapped", &put_back)
        .await;
    scene.gone().await;
    let of = |arn: &str| {
        scene
            .aws
            .keys(HOME)
            .into_iter()
            .find(|key| key.arn == arn)
            .unwrap()
            .state
    };
    assert_eq!(of(&foreign), "Enabled");
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_aws_refuses_is_told_and_passes_or_waits_for_a_human() {
    let scene = Scene::new("managed-refusals").await;
    let running = scene.operator().start();
    // How many keys there may be is no rate.
    scene.aws.always("CreateKey", Some("LimitExceededException"));
    scene.apply(&spec(&[to("eu", HOME)])).await;
    let message = scene.not_ready("QuotaExceeded").await;
    assert!(message.contains(HOME), "{message}");
    assert_eq!(scene.aws.keys(HOME).len(), 0);
    scene.aws.always("CreateKey", Some("ThrottlingException"));
    scene.not_ready("Throttled").await;
    scene.aws.always("CreateKey", None);
    // The token has expired on the way; new parameters are fetched.
    scene
        .aws
        .always("ImportKeyMaterial", Some("ExpiredImportTokenException"));
    scene.not_ready("ImportRejected").await;
    scene
        .aws
        .always("ImportKeyMaterial", Some("InvalidImportTokenException"));
    scene.not_ready("ImportRejected").await;
    scene
        .aws
        .always("ImportKeyMaterial", Some("InvalidCiphertextException"));
    scene.not_ready("ImportRejected").await;
    scene
        .aws
        .always("ImportKeyMaterial", Some("KMSInvalidStateException"));
    scene.not_ready("KeyUnusable").await;
    scene.aws.always("ImportKeyMaterial", None);
    scene.at_version("eu", 1).await;
    assert_eq!(scene.accounted("eu", HOME).await, 1);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_drifts_in_aws_is_mended_or_told() {
    let scene = Scene::new("managed-drift").await;
    let running = scene.operator().start();
    scene.apply(&spec(&[to("eu", HOME)])).await;
    let told = scene.at_version("eu", 1).await;
    let (arn, alias) = (
        told["versions"][0]["keyID"].as_str().unwrap(),
        told["alias"].as_str().unwrap(),
    );
    let material = scene.aws.keys(HOME)[0].material.clone();
    // Whatever happened meanwhile is seen at the next look; a change of the spec has it looked at now.
    let mut looks = 0;
    let mut look = async || {
        looks += 1;
        scene
            .patch(json!({"spec": {"distributions": [{"name": "eu", "awskms": {"region": HOME,
                "tags": {"team": "payments", "look": looks.to_string()}, "credentials": {"secretRef": {"name": "aws"}}}}]}}))
            .await;
    };
    scene.aws.change(arn, |key| key.state = "Disabled");
    look().await;
    ready(&scene.stage, "pay").await;
    assert_eq!(scene.aws.keys(HOME)[0].state, "Enabled");
    // The material is deleted: the same comes back.
    scene.aws.change(arn, |key| key.state = "PendingImport");
    look().await;
    ready(&scene.stage, "pay").await;
    let key = scene.aws.keys(HOME).remove(0);
    assert_eq!((key.state, &key.material), ("Enabled", &material));
    assert_eq!(key.tags["look"], "2");
    // Its status is emptied.
    let plane = &scene.stage.plane;
    plane
        .patch_status("ManagedKey", &scene.stage.namespace, "pay", &json!(null))
        .await;
    ready(&scene.stage, "pay").await;
    // Its alias is gone.
    scene.aws.set_alias(HOME, alias, None);
    look().await;
    ready(&scene.stage, "pay").await;
    assert_eq!(scene.aws.alias(HOME, alias).as_deref(), Some(arn));
    // It leads to somebody else's key.
    let foreign = scene.aws.foreign(HOME, "Enabled", &[]);
    scene.aws.set_alias(HOME, alias, Some(&foreign));
    look().await;
    scene.not_ready("AliasNotOwned").await;
    scene.aws.set_alias(HOME, alias, Some(arn));
    look().await;
    ready(&scene.stage, "pay").await;
    // Somebody imported other material into it.
    scene.aws.change(arn, |key| {
        key.state = "PendingImport";
        key.material = vec![7; 32];
    });
    look().await;
    scene.not_ready("MaterialMismatch").await;
    scene.aws.change(arn, |key| key.material.clone_from(&material));
    look().await;
    ready(&scene.stage, "pay").await;
    // Somebody wants it gone: that is a human's to decide.
    scene.aws.change(arn, |key| key.state = "PendingDeletion");
    look().await;
    let message = scene.not_ready("KeyPendingDeletion").await;
    assert!(message.contains("cancel-key-deletion"), "{message}");
    assert_eq!(scene.aws.count("CancelKeyDeletion"), 0);
    assert_eq!(scene.aws.count("CreateKey"), 1);
    assert_eq!(scene.aws.wrong(), Vec::<String>::new());
    // Nothing that was said holds the material.
    let needle = Needle::new("material", &material);
    let told = managed_key(&scene.stage, "pay").await.to_string();
    let events = scene.stage.events("pay").await.join("\n");
    let (metrics, output) = (running.metrics(), running.stop());
    for (place, text) in [
        ("status", told),
        ("events", events),
        ("metrics", metrics),
        ("output", output),
    ] {
        assert_eq!(needle.found_in(text.as_bytes()), None, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_asks_aws_nothing_and_a_lost_store_makes_no_second_key() {
    let scene = Scene::new("managed-quiet").await;
    let running = scene.operator().start();
    scene.apply(&spec(&[to("eu", HOME)])).await;
    scene.at_version("eu", 1).await;
    running.stop();
    let calls = |of: &[&str]| {
        of.iter()
            .map(|operation| scene.aws.count(operation))
            .sum::<usize>()
    };
    let looks = calls(&["DescribeKey", "ListAliases", "CreateKey"]);
    let opened = scene.aws.seals.count("Decrypt");
    let running = scene.operator().start();
    let reconciled = async |least: f64| {
        eventually("it was reconciled", async || {
            let seen = running.metric(
                "autounseal_reconcile_total",
                &["kind=\"ManagedKey\"", "outcome=\"ok\""],
            );
            (seen >= least).then_some(seen).ok_or(seen.to_string())
        })
        .await
    };
    // Once when it starts, and once more for a change that follows.
    let before = reconciled(1.0).await;
    scene
        .patch(json!({"metadata": {"annotations": {"example.com/touched": "yes"}}}))
        .await;
    reconciled(before + 1.0).await;
    assert!(running.metrics().contains("autounseal_ready{kind=\"ManagedKey\""));
    assert_eq!(calls(&["DescribeKey", "ListAliases", "CreateKey"]), looks);
    assert_eq!(scene.aws.seals.count("Decrypt"), opened);
    // Without its store, nothing is made over what was.
    let (plane, namespace) = (&scene.stage.plane, &scene.stage.namespace);
    plane.delete("Secret", namespace, "pay.managedkey.wrapped").await;
    scene.not_ready("StoreMissing").await;
    assert_eq!(scene.aws.keys(HOME).len(), 1);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_config_that_is_in_use_keeps_its_store_and_its_last_seal() {
    let scene = Scene::new("managed-inuse").await;
    let running = scene.operator().start();
    scene.apply(&spec(&[])).await;
    ready(&scene.stage, "pay").await;
    let (plane, namespace) = (&scene.stage.plane, &scene.stage.namespace);
    let config = scene.stage.config("platform").await;
    let second = scene.aws.seals.key();
    let mut other = config["spec"].clone();
    other["seals"][0]["name"] = json!("other");
    other["seals"][0]["awskms"]["kmsKeyID"] = json!(second.arn);
    scene.stage.apply("platform", &other).await;
    let message = scene.stage.not_ready("platform", "LastSealRemoved").await;
    assert!(message.contains("ManagedKey pay"), "{message}");
    scene.not_ready("LastSealRemoved").await;
    let mut back = config["spec"].clone();
    back["wrappedDeletionPolicy"] = json!("Delete");
    scene.stage.apply("platform", &back).await;
    scene.stage.ready("platform").await;
    ready(&scene.stage, "pay").await;
    plane.delete("SealConfig", namespace, "platform").await;
    let message = eventually("the SealConfig is told to be in use", async || {
        let config = scene.stage.config("platform").await;
        let ready = condition(&config, "Ready");
        if ready["reason"] == "InUse" {
            Ok(ready["message"].as_str().unwrap_or_default().to_owned())
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;
    assert!(message.contains("pay"), "{message}");
    scene.delete().await;
    scene.gone().await;
    eventually("the SealConfig is gone", async || {
        match plane.get("SealConfig", namespace, "platform").await {
            None => Ok(()),
            Some(left) => Err(format!("{left:#}")),
        }
    })
    .await;
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_a_distribution_needs_the_grant_of_the_operators_identity() {
    let scene = Scene::new("managed-identity").await;
    let running = scene.operator().start();
    let own = json!({"name": "eu", "awskms": {"region": HOME}});
    scene.apply(&spec(std::slice::from_ref(&own))).await;
    scene.not_ready("OperatorIdentityNotAllowed").await;
    assert_eq!(scene.aws.changes(), 0, "nothing was asked of AWS");
    // A Secret that is not there does not fall back to it.
    let missing =
        json!({"name": "eu", "awskms": {"region": HOME, "credentials": {"secretRef": {"name": "nowhere"}}}});
    scene.apply(&spec(&[missing])).await;
    scene.not_ready("CredentialsMissing").await;
    assert_eq!(scene.aws.changes(), 0);
    running.stop();
    let allowed = format!("--operator-identity-namespaces={}", scene.stage.namespace);
    let running = scene.operator().flags([allowed]).start();
    scene.apply(&spec(&[own])).await;
    scene.at_version("eu", 1).await;
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_terminates_is_not_held_up() {
    let scene = Scene::new("managed-ends").await;
    let running = scene.operator().start();
    let mut wanted = spec(&[to("eu", HOME)]);
    wanted["deletion"] = json!({"policy": "ScheduleDeletion"});
    scene.apply(&wanted).await;
    scene.at_version("eu", 1).await;
    let uid = managed_key(&scene.stage, "pay").await["metadata"]["uid"].clone();
    let confirm = json!({"metadata": {"annotations": {"autounseal.dev/confirm-deletion": uid}}});
    scene.patch(confirm).await;
    ready(&scene.stage, "pay").await;
    // The region does not answer, so its keys cannot be taken back.
    scene.aws.down(HOME, true);
    let plane = &scene.stage.plane;
    plane.delete("Namespace", "", &scene.stage.namespace).await;
    scene.delete().await;
    scene.gone().await;
    assert_eq!(states(&scene.aws.keys(HOME)), ["Enabled"]);
    running.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn material_that_is_brought_is_imported_and_other_bytes_are_the_next_version() {
    let scene = Scene::new("managed-brought").await;
    let running = scene.operator().start();
    let seal = scene.seal.clone();
    let wrapped = |bytes: &[u8]| {
        let copy = scene.aws.seals.encrypt(&seal, bytes, &Context::new());
        json!({"wrapped": [{"seal": "aws", "format": "kms", "inline": BASE64.encode(&copy)}]})
    };
    let (first, second) = (random(32), random(32));
    let mut wanted = spec(&[to("eu", HOME)]);
    wanted.as_object_mut().unwrap().remove("rotation");
    wanted["material"] = wrapped(&first);
    scene.apply(&wanted).await;
    scene.at_version("eu", 1).await;
    assert_eq!(scene.aws.keys(HOME)[0].material, first);
    // The same key in another copy is no version.
    wanted["material"] = wrapped(&first);
    scene.apply(&wanted).await;
    scene.at_version("eu", 1).await;
    // What is no material of the type makes none, and what was stays.
    wanted["material"] = wrapped(&random(31));
    scene.apply(&wanted).await;
    let message = scene.not_ready("InvalidSpec").await;
    assert!(message.contains("32 bytes"), "{message}");
    wanted["material"] = wrapped(&second);
    scene.apply(&wanted).await;
    scene.at_version("eu", 2).await;
    assert_eq!(scene.accounted("eu", HOME).await, 2);
    assert_eq!(scene.aws.keys(HOME)[1].material, second);
    running.stop();
}

#[tokio::test]
async fn a_finalizer_is_changed_whatever_became_of_the_status_and_never_over_a_list_that_was_not_seen() {
    let stage = Stage::new("finalizers").await;
    let spec = json!({"seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/a", "region": HOME}}]});
    stage.apply("pay", &spec).await;
    let configs: Api<SealConfig> = Api::namespaced(stage.plane.client(), &stage.namespace);
    let put = async |seen: &SealConfig, wanted| {
        put_finalizers(&stage.plane.client(), seen, FINALIZER, wanted, "patch").await
    };
    let finalizers = async || configs.get("pay").await.unwrap().finalizers().to_vec();
    put(&configs.get("pay").await.unwrap(), true).await.unwrap();
    assert_eq!(finalizers().await, [FINALIZER]);
    let seen = configs.get("pay").await.unwrap();
    let status = json!({"observedGeneration": 1});
    stage
        .plane
        .patch_status("SealConfig", &stage.namespace, "pay", &status)
        .await;
    let foreign = json!({"metadata": {"finalizers": [FINALIZER, "example.com/other"]}});
    put(&seen, false).await.unwrap();
    assert!(finalizers().await.is_empty());
    put(&configs.get("pay").await.unwrap(), true).await.unwrap();
    let seen = configs.get("pay").await.unwrap();
    stage
        .plane
        .patch("SealConfig", &stage.namespace, "pay", &foreign)
        .await;
    let fault = put(&seen, false).await.unwrap_err();
    assert!(
        fault.message.contains("changed its finalizers meanwhile"),
        "{}",
        fault.message
    );
    assert_eq!(finalizers().await, [FINALIZER, "example.com/other"]);
    put(&configs.get("pay").await.unwrap(), false).await.unwrap();
    assert_eq!(finalizers().await, ["example.com/other"]);
}
