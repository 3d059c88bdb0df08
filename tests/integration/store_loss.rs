//! Drill 5: the store is lost, damaged or rolled back at every point of drill 3. There is never a second key over the
//! first: the delivered one stays, comes back into a new store, or a human is asked.

use futures::future::join_all;
use serde_json::json;

use crate::{
    generated::Clouds,
    support::{
        drill::{Data, Drill, NAME, header},
        knife::{Cut, Knife, Side},
        operator::Running,
        plane::{eventually, within},
        stage::{condition, speaks_of_now},
    },
};

/// What is done to the store while the operator is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Deleted.
    Deleted,
    /// Deleted, and the status of the SealConfig emptied.
    DeletedWithStatus,
    /// The second half of the header is cut off.
    HeaderCut,
    /// The second half of one seal's copy of the version in use is cut off.
    CopyCut,
    /// Of both seals' copies.
    CopiesCut,
    /// The first state of the store, from before the rotation.
    RolledBack,
}

/// The writes of making a key and rotating it, as drill 3 enumerates them: store, Secret, status, twice.
const WRITES: usize = 6;

/// Starts anew and waits until the operator has looked and nothing is under way any more: the word of Ready.
async fn settled(drill: &Drill<'_>, operator: &Running, trigger: &str) -> (String, String) {
    within(std::time::Duration::from_mins(1), "settled", async || {
        let config = drill.stage.config(NAME).await;
        let ready = condition(&config, "Ready");
        let reason = ready["reason"].as_str().unwrap_or_default().to_owned();
        let looked = operator.metric("autounseal_reconcile_total", &[]) >= 1.0;
        let acted_on = drill.header().await["keys"]["static"]["section"]["trigger"] == trigger;
        let settled = (ready["status"] == "True" && acted_on) || reason.starts_with("Store");
        if looked && settled && speaks_of_now(&config) {
            Ok((reason, ready["message"].as_str().unwrap_or_default().to_owned()))
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await
}

/// Damages the store; `false` where there is nothing of that kind to damage.
async fn lose(drill: &Drill<'_>, loss: Loss) -> bool {
    let mut data = drill.store().await;
    if data.is_empty() {
        return false;
    }
    let current = header(&data)["keys"]["static"]["section"]["current"].clone();
    let cut = |data: &mut Data, item: String| {
        let bytes = data.get_mut(&item).unwrap();
        bytes.truncate(bytes.len() / 2);
    };
    match loss {
        Loss::Deleted => drill.delete_store().await,
        Loss::DeletedWithStatus => {
            drill.delete_store().await;
            drill.lose_status().await;
        }
        Loss::HeaderCut => {
            cut(&mut data, "header".to_owned());
            drill.put_store(&data).await;
        }
        Loss::CopyCut => {
            cut(&mut data, format!("key.static.v{current}.aws"));
            drill.put_store(&data).await;
        }
        Loss::CopiesCut => {
            for seal in ["aws", "oci"] {
                cut(&mut data, format!("key.static.v{current}.{seal}"));
            }
            drill.put_store(&data).await;
        }
        Loss::RolledBack => {
            let history = drill.history().await;
            let first = history
                .iter()
                .find(|state| state.name == "bao.sealconfig.wrapped")
                .unwrap();
            if first.data == data {
                return false;
            }
            drill.put_store(&first.data).await;
        }
    }
    true
}

/// Makes and rotates a key until the operator dies at the cut, has the store lost, and starts it again.
async fn lose_at(clouds: &Clouds, cut: Cut, loss: Loss) {
    let what = format!("{cut:?} {loss:?}");
    let drill = Drill::new(clouds, "store-loss").await;
    let knife = Knife::new(drill.stage.plane.client(), Some(cut)).await;
    let dead = knife.start(&drill.operator());
    let mut applied = "";
    for (version, trigger) in [(1, "q1"), (2, "q2")] {
        applied = trigger;
        drill.apply(trigger).await;
        within(std::time::Duration::from_mins(1), &what, async || {
            match (knife.is_reached(), knife.has_struck()) {
                (true, false) => Err("it is about to be killed".to_owned()),
                (true, true) => Ok(()),
                _ => drill.is_at(version).await.map(|_| ()),
            }
        })
        .await;
        if knife.has_struck() {
            break;
        }
    }
    assert!(knife.has_struck(), "{what}: there are fewer writes than that");
    drop(dead);
    let before = drill.stage.secret(NAME).await;
    let stored = header(&drill.store().await)["keys"]["static"]["section"]["current"].as_u64();
    if !lose(&drill, loss).await {
        return;
    }
    let operator = drill.operator().start();
    let (reason, message) = settled(&drill, &operator, applied).await;
    let after = drill.stage.secret(NAME).await;
    println!("{what}: {reason}");
    // In order, and no number with two values, whatever happened.
    let delivered = drill.delivered().await;
    if let Some(before) = &before {
        let after = after.unwrap();
        let same = after["current.key"] == before["current.key"];
        let next = after.get("previous.key") == Some(&before["current.key"]);
        assert!(same || next, "{what}: a second key over the first: {message}");
        if let Some(previous) = before.get("previous.key").filter(|_| same) {
            assert_eq!(
                after.get("previous.key"),
                Some(previous),
                "{what}: version 1 is gone"
            );
        }
        match loss {
            // The bytes are all there: in the delivered Secret, or in the copy of the other seal.
            Loss::Deleted | Loss::HeaderCut | Loss::CopyCut | Loss::CopiesCut => {
                let undelivered = stored > delivered.last().map(|(version, _)| *version);
                assert!(reason == "Ready" || undelivered, "{what}: {reason} {message}");
            }
            // Nothing but the Secret tells of it: either way is good, but for a new key.
            Loss::DeletedWithStatus => assert!(same, "{what}"),
            Loss::RolledBack => {}
        }
    }
    if reason == "Ready" {
        // And it goes on from there, with a number that was never delivered.
        let at = drill.stage.config(NAME).await["status"]["keys"][0]["version"]
            .as_u64()
            .unwrap();
        let last = drill.stage.secret(NAME).await.unwrap();
        drill.apply("q3").await;
        let rotated = within(std::time::Duration::from_mins(1), &what, async || {
            let config = drill.stage.config(NAME).await;
            let version = config["status"]["keys"][0]["version"]
                .as_u64()
                .unwrap_or_default();
            if version > at {
                drill.is_at(version).await
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await;
        assert_eq!(rotated["previous.key"], last["current.key"], "{what}");
        drill.delivered().await;
    }
    operator.stop();
}

async fn at_every_point(name: &str, losses: &[Loss], points: impl Iterator<Item = usize>) {
    let clouds = Clouds::new(name).await;
    let clouds = &clouds;
    let cuts: Vec<(Cut, Loss)> = points
        .flat_map(|write| [Side::Before, Side::After].map(|side| Cut { write, side }))
        .flat_map(|cut| losses.iter().map(move |loss| (cut, *loss)))
        .collect();
    for some in cuts.chunks(6) {
        join_all(some.iter().map(|(cut, loss)| lose_at(clouds, *cut, *loss))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_at_any_point_the_store_comes_back_from_what_was_delivered() {
    at_every_point(
        "store-deleted",
        &[Loss::Deleted, Loss::DeletedWithStatus],
        1..=WRITES,
    )
    .await;
}

/// The points where the store is ahead of the Secret, and where both are of the last version; before them there is
/// nothing to cut or the same as after them.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_or_rolled_back_at_any_point_the_store_makes_no_second_key() {
    let losses = [Loss::HeaderCut, Loss::CopyCut, Loss::CopiesCut, Loss::RolledBack];
    at_every_point("store-damaged", &losses, [2, 4, 5, 6].into_iter()).await;
}

/// A drill at version 2, its operator, what it delivered, and the first state of its store.
async fn rotated<'c>(clouds: &'c Clouds, name: &str) -> (Drill<'c>, Running, Data, Data) {
    let drill = Drill::new(clouds, name).await;
    let operator = drill.operator().start();
    drill.apply("q1").await;
    drill.at(1).await;
    let first = drill.store().await;
    drill.apply("q2").await;
    let data = drill.at(2).await;
    (drill, operator, data, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_rolled_back_is_taken_up_only_when_a_human_names_its_counter() {
    let clouds = Clouds::new("store-accept").await;
    let (drill, operator, second, first) = rotated(&clouds, "store-accept").await;
    operator.stop();
    drill.put_store(&first).await;
    let operator = drill.operator().start();
    let message = drill.told("StoreRolledBack").await;
    let counter = header(&first)["counter"].clone();
    assert!(
        message.contains(&format!("autounseal.dev/accept-store={counter}")),
        "{message}"
    );
    // Another counter than the store's is no consent to this store.
    let (plane, namespace) = (&drill.stage.plane, &drill.stage.namespace);
    let accept = async |counter: String| {
        let patch = json!({"metadata": {"annotations": {"autounseal.dev/accept-store": counter}}});
        plane.patch("SealConfig", namespace, NAME, &patch).await;
    };
    for wrong in ["0", "2", "yes", "-1"] {
        let looked = operator.metric("autounseal_reconcile_total", &[]);
        accept(wrong.to_owned()).await;
        eventually("it has looked again", async || {
            let now = operator.metric("autounseal_reconcile_total", &[]);
            (now > looked).then_some(()).ok_or_else(|| now.to_string())
        })
        .await;
        drill.told("StoreRolledBack").await;
        assert_eq!(drill.stage.secret(NAME).await.unwrap(), second);
        assert_eq!(drill.store().await, first);
    }
    accept(counter.to_string()).await;
    // The rotation to q2 is made up for, and the number of the version that was lost stays used.
    let third = drill.at(3).await;
    let record = drill.header().await["keys"]["static"]["section"].clone();
    let versions: Vec<&String> = record["versions"].as_object().unwrap().keys().collect();
    assert_eq!(versions, ["1", "3"]);
    let value = |bytes: &[u8]| json!(drill.check_value(bytes));
    assert_eq!(
        record["versions"]["1"]["checkValue"],
        value(&third["previous.key"])
    );
    assert_ne!(third["current.key"], second["current.key"]);
    assert_eq!(third["previous.key"], second["previous.key"]);
    // Without the consent, the same store is told again.
    let patch = json!({"metadata": {"annotations": {"autounseal.dev/accept-store": null}}});
    plane.patch("SealConfig", namespace, NAME, &patch).await;
    drill.put_store(&first).await;
    drill.told("StoreRolledBack").await;
    assert_eq!(drill.stage.secret(NAME).await.unwrap(), third);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_config_that_is_made_again_takes_no_second_key_for_a_store_that_is_gone() {
    let clouds = Clouds::new("store-again").await;
    let (drill, _operator, second, _) = rotated(&clouds, "store-again").await;
    let (plane, namespace) = (&drill.stage.plane, &drill.stage.namespace);
    let store = drill.store().await;
    plane.delete("SealConfig", namespace, NAME).await;
    drill.delete_store().await;
    drill.apply("q2").await;
    drill.told("StoreMissing").await;
    assert_eq!(drill.stage.secret(NAME).await.unwrap(), second);
    assert!(drill.store().await.is_empty());
    // A backup mends it.
    drill.put_store(&store).await;
    plane.delete("Secret", namespace, NAME).await;
    assert_eq!(drill.at(2).await, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_status_changes_nothing_and_writes_no_store() {
    let clouds = Clouds::new("store-status").await;
    let (drill, operator, second, _) = rotated(&clouds, "store-status").await;
    operator.stop();
    let before = drill.stage.whole_secret("bao.sealconfig.wrapped").await;
    drill.lose_status().await;
    let _operator = drill.operator().start();
    assert_eq!(drill.at(2).await, second);
    let after = drill.stage.whole_secret("bao.sealconfig.wrapped").await;
    assert_eq!(
        after["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_rebuilt_from_all_secrets_that_hold_a_version_and_from_nothing_else() {
    let clouds = Clouds::new("store-rebuilt").await;
    let drill = Drill::new(&clouds, "store-rebuilt").await;
    let operator = drill.operator().start();
    let spec = |trigger: &str| {
        let mut spec = drill.spec(trigger);
        // The first target holds the version in use only.
        let alone = json!({"name": "a", "secret": {"name": "alone", "data": [
            {"name": "k", "key": {"name": "static", "encoding": "base64"}}]}});
        spec["targets"].as_array_mut().unwrap().insert(0, alone);
        // A key that lies nowhere in bytes of its own.
        spec["keys"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "text", "generate": {"bytes": 32}}));
        let text = json!({"name": "z", "secret": {"name": "text", "data": [
            {"name": "t", "template": "x={{ keys[\"text\"].hex }}"}]}});
        spec["targets"].as_array_mut().unwrap().push(text);
        spec
    };
    for (version, trigger) in [(1, "q1"), (2, "q2")] {
        drill.stage.apply(NAME, &spec(trigger)).await;
        drill.at(version).await;
    }
    let names = [NAME, "alone", "text"];
    let all = async || {
        let mut all = Vec::new();
        for name in names {
            all.push(drill.stage.secret(name).await.unwrap());
        }
        all
    };
    let before = all().await;
    let store = drill.store().await;
    drill.delete_store().await;
    let message = drill.told("StoreMissing").await;
    assert!(message.contains("\"text\""), "{message}");
    eventually("the other key is in a store again", async || {
        let header = drill.header().await;
        let held = header["keys"]["static"]["section"]["versions"]
            .as_object()
            .map(serde_json::Map::len);
        (held == Some(2))
            .then_some(())
            .ok_or_else(|| format!("{header:#}"))
    })
    .await;
    assert_eq!(all().await, before);
    // Nobody makes another for the one that is lost, however often it is looked at.
    operator.stop();
    let operator = drill.operator().start();
    drill.told("StoreMissing").await;
    assert_eq!(all().await, before);
    // A backup that is older than what was built meanwhile is told; it is for the human to say what counts.
    drill.put_store(&store).await;
    drill.told("StoreRolledBack").await;
    let patch = json!({"metadata": {"annotations":
        {"autounseal.dev/accept-store": header(&store)["counter"].to_string()}}});
    let (plane, namespace) = (&drill.stage.plane, &drill.stage.namespace);
    plane.patch("SealConfig", namespace, NAME, &patch).await;
    drill.at(2).await;
    assert_eq!(all().await, before);
    let config = drill.stage.config(NAME).await;
    assert_eq!(config["status"]["keys"][1]["wrappedUnder"], json!(["aws", "oci"]));
    operator.stop();
}
