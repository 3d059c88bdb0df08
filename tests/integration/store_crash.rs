//! Drill 3: the operator is killed at every write of generation and rotation, on either side of it. There is always
//! either the old or the new state, never a lost version, never two current ones.

use futures::future::join_all;

use crate::{
    generated::Clouds,
    support::{
        drill::Drill,
        knife::{Cut, Knife, Side},
        operator::Running,
        plane::within,
    },
};

/// Crash points that are tried at once.
const AT_ONCE: usize = 3;

/// Makes a key and rotates it with an operator that dies at the cut; returns the writes that there were if it never did.
async fn make_and_rotate(clouds: &Clouds, cut: Cut) -> Option<Vec<String>> {
    let drill = Drill::new(clouds, "store-crash").await;
    let knife = Knife::new(drill.stage.plane.client(), Some(cut)).await;
    let mut operator = knife.start(&drill.operator());
    let mut killed = false;
    let mut kept = None;
    for (version, trigger) in [(1, "q1"), (2, "q2")] {
        drill.apply(trigger).await;
        let well = until(&drill, &knife, version, killed).await;
        if !well {
            killed = true;
            operator = restart(&drill, operator);
            drill.at(version).await;
        }
        let data = drill.stage.secret("bao").await.unwrap();
        match kept.replace(data["current.key"].clone()) {
            None => assert!(!data.contains_key("previous.key"), "{cut:?}: there is none yet"),
            Some(first) => assert_eq!(data["previous.key"], first, "{cut:?}: version 1 was lost"),
        }
    }
    operator.stop();
    println!("{cut:?}: {}", if killed { "killed" } else { "not reached" });
    drill.holds().await;
    assert_eq!(drill.delivered().await.len(), 2, "{cut:?}");
    (!killed).then(|| knife.seen())
}

/// Waits for the version, or for the operator's death.
async fn until(drill: &Drill<'_>, knife: &Knife, version: u64, killed: bool) -> bool {
    let limit = std::time::Duration::from_mins(1);
    within(limit, "well, or killed", async || {
        let well = drill.is_at(version).await;
        match (killed, knife.is_reached(), knife.has_struck()) {
            (false, true, false) => Err("it is about to be killed".to_owned()),
            (false, true, true) => Ok(false),
            _ => well.map(|_| true),
        }
    })
    .await
}

fn restart(drill: &Drill<'_>, dead: Running) -> Running {
    drop(dead);
    drill.operator().spawn()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_write_the_operator_loses_no_version_and_makes_none_twice() {
    let clouds = Clouds::new("store-crash").await;
    let mut first = 1;
    let writes = loop {
        let cuts = (first..first + AT_ONCE)
            .flat_map(|write| [Side::Before, Side::After].map(|side| Cut { write, side }));
        let runs = join_all(cuts.map(|cut| make_and_rotate(&clouds, cut))).await;
        first += AT_ONCE;
        if let Some(writes) = runs.into_iter().flatten().next() {
            break writes;
        }
    };
    println!("{writes:#?}");
    // Store, Secret and status of either version: fewer would mean that the proxy does not see them.
    assert!(
        writes.len() >= 6 && first > writes.len(),
        "{} points: {writes:#?}",
        first - 1
    );
}
