//! The shares of a real raft cluster are replaced: all of its servers take the new ones and none the old, also when the
//! active server, the only one that knows of the rekey, is killed in the middle of it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::runtime::Handle;

use crate::{
    initialize::{NAME, Set, needles},
    secrecy::{said, search},
    support::{
        door,
        fleet::{Client, told},
        http::Request,
        operator::Running,
        plane::within,
        raft::{Cluster, MEMBERS, PATIENCE},
        server::Product,
        tls::TlsServer,
    },
};

/// A cluster that the operator has initialised, with a value in it.
struct Ring {
    set: Set,
    cluster: Cluster,
    running: Option<Running>,
    /// What was written by operators that have ended.
    written: String,
    /// Every share that there was.
    known: Vec<String>,
    _doors: Vec<TlsServer>,
}

impl Ring {
    /// `watch`: sees what the operator asks the servers.
    async fn new(name: &str, watch: Option<Arc<Strike>>) -> Self {
        let mut set = Set::new(name, Product::Vault, "127.0.0.2").await;
        let mut cluster = Cluster::raw(Product::Vault, set.pki.clone()).await;
        set.at.set_port(cluster.port());
        let mut doors = Vec::new();
        if let Some(strike) = watch {
            strike.knows(&cluster);
            for (member, client) in (2..).zip(cluster.clients.clone()) {
                let at = SocketAddr::new(IpAddr::from([127, 0, 1, member]), cluster.port());
                let strike = strike.clone();
                let watch = Arc::new(move |request: &Request| strike.falls(request));
                doors.push(door::before(client, at, &set.pki, watch));
            }
            cluster.doors = doors.iter().map(|door| door.address().ip()).collect();
        }
        cluster.pods(&set.scene).await;
        let running = set.operator().start();
        // The token is kept, and used.
        let initialize = json!({"shamir": {"shares": 3, "threshold": 2}, "rootToken": "Wrap"});
        set.scene.stage.apply(NAME, &set.spec(&initialize)).await;
        cluster.whole().await;
        told(&set.scene, NAME, "True", "Ready").await;
        cluster.token = set.unwrap(&["--root-token"]);
        cluster.write("before").await;
        let known = set.shares(3);
        Self {
            set,
            cluster,
            running: Some(running),
            written: String::new(),
            known,
            _doors: doors,
        }
    }

    /// The shares in use, which are known from now on.
    fn notes(&mut self) -> Vec<String> {
        let shares = self.set.shares(3);
        if !self.known.contains(&shares[0]) {
            self.known.extend(shares.clone());
        }
        shares
    }

    /// Every server is killed, and starts again.
    async fn restarts(&mut self) {
        for member in 0..MEMBERS {
            self.cluster.kill(member);
        }
        for member in 0..MEMBERS {
            self.cluster.restart(&self.set.scene, member).await;
        }
    }

    fn ends(&mut self) {
        if let Some(running) = self.running.take() {
            self.written += &running.stop();
        }
    }

    fn output(&self) -> String {
        let running = self.running.as_ref();
        self.written.clone() + &running.map_or_else(String::new, Running::output)
    }

    /// The cluster is whole, by the shares in use and no others, and what was written is there.
    async fn opens_by_the_new_ones_only(&mut self) {
        self.cluster.even().await;
        let new = self.notes();
        self.ends();
        self.restarts().await;
        for (member, client) in self.cluster.clients.iter().enumerate() {
            within(PATIENCE, "it listens, and is sealed", async || {
                let sealed = client.sealed().await;
                (sealed == Some(true))
                    .then_some(())
                    .ok_or_else(|| format!("{sealed:?}"))
            })
            .await;
            for old in self.known.chunks(3).filter(|set| *set != new) {
                assert!(
                    !unseals(client, &old[..2]).await,
                    "the old shares still unseal {member}"
                );
            }
        }
        let running = self.set.operator().start();
        let active = self.cluster.whole().await;
        assert_eq!(self.cluster.read(active).await.as_deref(), Some("before"));
        told(&self.set.scene, NAME, "True", "Ready").await;
        self.running = Some(running);
    }

    async fn said_nothing(mut self) {
        let metrics = self.running.as_ref().map_or_else(String::new, Running::metrics);
        self.ends();
        let said = said(&self.set.scene.stage, &self.written, &metrics).await;
        let token = self.cluster.token.clone();
        search(&needles(&[self.known, vec![token]].concat()), &said);
    }
}

/// Gives a server these shares by hand.
async fn unseals(client: &Client, shares: &[String]) -> bool {
    for share in shares {
        let key = json!({"key": share});
        let answer = client.ask("PUT", "sys/unseal", "", &key).await;
        if answer.is_some_and(|(status, body)| status == 200 && body["sealed"] == false) {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raft_cluster_takes_new_shares_and_no_server_of_it_the_old_ones() {
    let mut ring = Ring::new("rotate-raft", None).await;
    let active = ring.cluster.whole().await;
    let late = (active + 1) % MEMBERS;
    ring.cluster.kill(late);
    let copy = ring.cluster.copy_of(late);
    ring.cluster.restart(&ring.set.scene, late).await;
    ring.cluster.whole().await;

    ring.set.rotate("one").await;
    ring.set.replaced("one").await;
    // Shares that are replaced bring no root token, and take none away.
    assert_eq!(ring.set.unwrap(&["--root-token"]), ring.cluster.token);
    ring.opens_by_the_new_ones_only().await;
    let of_the_first = |ring: &Ring| {
        ring.output()
            .matches("the shares of set 1 unsealed the server")
            .count()
    };
    assert_eq!(of_the_first(&ring), 0);

    // One whose data are of before is opened by the shares of then, and gets from the others what it lacks.
    ring.cluster.kill(late);
    ring.cluster.put_back(late, &copy);
    ring.cluster.restart(&ring.set.scene, late).await;
    ring.cluster.whole().await;
    assert_eq!(of_the_first(&ring), 1);
    ring.cluster.even().await;
    ring.cluster.kill(late);
    ring.cluster.restart(&ring.set.scene, late).await;
    ring.cluster.whole().await;
    assert_eq!(of_the_first(&ring), 1, "it has caught up");
    ring.said_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_active_server_is_killed_in_the_middle_of_a_rotation_and_the_operator_goes_on() {
    let strike = Strike::new();
    let mut ring = Ring::new("rotate-raft-killed", Some(strike.clone())).await;
    // Begun; the new shares answered; one of them given back; and all of them, so that the old ones are void. None of
    // these answers arrives.
    for (what, line, number) in [
        ("begun", "PUT /v1/sys/rekey/init ", 1),
        ("answered", "PUT /v1/sys/rekey/update ", 2),
        ("verified", "PUT /v1/sys/rekey/verify ", 1),
        ("taken", "PUT /v1/sys/rekey/verify ", 2),
    ] {
        strike.knows(&ring.cluster);
        strike.aims(line, number);
        ring.set.rotate(what).await;
        let killed = within(PATIENCE, &format!("killed: {what}"), async || {
            strike.victim().ok_or_else(|| ring.output())
        })
        .await;
        ring.cluster.kill(killed);
        ring.cluster.restart(&ring.set.scene, killed).await;
        ring.set.replaced(what).await;
        told(&ring.set.scene, NAME, "True", "Ready").await;
        let active = ring.cluster.whole().await;
        assert_eq!(
            ring.cluster.read(active).await.as_deref(),
            Some("before"),
            "{what}"
        );
        ring.notes();
    }
    assert_eq!(ring.known.len(), 5 * 3, "each rotation made its set");
    ring.opens_by_the_new_ones_only().await;
    ring.said_nothing().await;
}

/// Kills the active server when it has answered a certain request, and the answer is lost.
struct Strike {
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clients: Vec<Client>,
    pids: Vec<u32>,
    /// What the request's first line begins with, and how many of these are left.
    aim: Option<(&'static str, usize)>,
    victim: Option<usize>,
}

impl Strike {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            runtime: Handle::current(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes as they are now.
    fn knows(&self, cluster: &Cluster) {
        let mut state = self.state();
        state.clients.clone_from(&cluster.clients);
        state.pids = (0..MEMBERS).map(|member| cluster.pid(member)).collect();
    }

    fn aims(&self, line: &'static str, number: usize) {
        let mut state = self.state();
        state.aim = Some((line, number));
        state.victim = None;
    }

    /// The member that was killed.
    fn victim(&self) -> Option<usize> {
        self.state().victim
    }

    /// Whether the answer to this request is lost, for its server is dead.
    fn falls(&self, request: &Request) -> bool {
        let (clients, pids) = {
            let mut state = self.state();
            let Some((line, left)) = &mut state.aim else {
                return false;
            };
            if !request.line.starts_with(*line) {
                return false;
            }
            *left -= 1;
            if *left > 0 {
                return false;
            }
            state.aim = None;
            (state.clients.clone(), state.pids.clone())
        };
        let active = self.runtime.block_on(Cluster::active(&clients)).unwrap();
        let pid = i32::try_from(pids[active]).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        self.state().victim = Some(active);
        true
    }
}
