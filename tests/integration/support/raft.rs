//! A raft cluster of three servers, one pod each, at addresses of their own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    fleet::{Client, HOST, container, pod},
    operator::free_port,
    pki::Pki,
    plane::within,
    scene::Scene,
    server::{Disk, Product, Server},
};

/// Members.
pub const MEMBERS: usize = 3;

/// Answers that a client gets between two kills.
const BETWEEN: usize = 50;

/// How long a cluster is given for what it does by itself.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// The cluster; its pods are `<product>-0` and so on, with label `app` of the product.
pub struct Cluster {
    pub product: Product,
    pub clients: Vec<Client>,
    /// What the pods give out as their addresses.
    pub doors: Vec<IpAddr>,
    addresses: Vec<SocketAddr>,
    disks: Vec<Disk>,
    servers: Vec<Option<Server>>,
    pki: Arc<Pki>,
    /// The `seal` block in the configuration of members that start from now on.
    pub seal: Option<String>,
    /// The root token.
    pub token: String,
    /// The shares as the server prints them.
    pub shares: Vec<Vec<u8>>,
}

impl Cluster {
    /// Starts the members, initialises the first one, and makes their pods. All are sealed, and two have not joined yet.
    pub async fn new(scene: &Scene, product: Product, pki: Pki, shares: u8, threshold: u8) -> Self {
        let mut cluster = Self::raw(product, pki.into()).await;
        let wish = json!({"secret_shares": shares, "secret_threshold": threshold});
        let made = cluster.clients[0].ask("PUT", "sys/init", "", &wish).await;
        let made = made.unwrap().1;
        cluster.token = made["root_token"].as_str().unwrap().to_owned();
        let texts = made["keys"].as_array().unwrap().iter();
        cluster.shares = texts
            .map(|text| text.as_str().unwrap().as_bytes().to_vec())
            .collect();
        cluster.pods(scene).await;
        cluster
    }

    /// Starts the members, which are for somebody else to initialise, and whose pods are yet to be made.
    pub async fn raw(product: Product, pki: Arc<Pki>) -> Self {
        let api = free_port().port();
        let ip = |member: usize| format!("127.0.0.{}", member + 2);
        let at = |member: usize| SocketAddr::new(ip(member).parse().unwrap(), api);
        let addresses: Vec<SocketAddr> = (0..MEMBERS).map(&at).collect();
        let disks = (0..MEMBERS).map(|member| {
            let ca = pki.ca_file().display().to_string();
            let join: Vec<String> = (0..MEMBERS)
                .filter(|other| *other != member)
                .map(|other| {
                    format!(
                        "retry_join {{\n    leader_api_addr = \"https://{}\"\n    leader_ca_cert_file = {ca:?}\n    \
                         leader_tls_servername = {HOST:?}\n  }}",
                        at(other)
                    )
                })
                .collect();
            let node = format!("node-{member}");
            Disk::raft(product, &node, at(member), &join.join("\n  "))
        });
        let mut cluster = Self {
            product,
            clients: addresses
                .iter()
                .map(|address| Client::new(&pki, *address))
                .collect(),
            disks: disks.collect(),
            servers: (0..MEMBERS).map(|_| None).collect(),
            doors: addresses.iter().map(SocketAddr::ip).collect(),
            addresses,
            pki,
            seal: None,
            token: String::new(),
            shares: Vec::new(),
        };
        for member in 0..MEMBERS {
            cluster.start(member);
        }
        let first = cluster.clients[0].clone();
        within(PATIENCE, "the first member listens", async || {
            let status = first.status().await;
            (status["initialized"] == false)
                .then_some(())
                .ok_or_else(|| status.to_string())
        })
        .await;
        cluster
    }

    /// Makes the members' pods.
    pub async fn pods(&self, scene: &Scene) {
        for member in 0..MEMBERS {
            let (name, app) = (self.name(member), self.product.word());
            pod(scene, &name, app, self.doors[member]).await;
        }
    }

    /// A member's pod.
    pub fn name(&self, member: usize) -> String {
        format!("{}-{member}", self.product.word())
    }

    /// Where the members listen.
    pub fn port(&self) -> u16 {
        self.addresses[0].port()
    }

    fn start(&mut self, member: usize) {
        let (certificate, key) = self.pki.files(HOST);
        let disk = &self.disks[member];
        let mut files: &[&str] = &[];
        if let Some(seal) = &self.seal {
            disk.mounted(&[("seal.hcl", seal.as_bytes())]);
            files = &["seal.hcl"];
        }
        let server = disk.listen(self.addresses[member], Some((&certificate, &key)), files, &[]);
        self.servers[member] = Some(server);
    }

    /// Kills a member.
    pub fn kill(&mut self, member: usize) {
        self.servers[member] = None;
    }

    /// A member's process.
    pub fn pid(&self, member: usize) -> u32 {
        self.servers[member].as_ref().map_or(0, Server::pid)
    }

    /// A copy of a member's data, as long as it does not run.
    pub fn copy_of(&self, member: usize) -> Disk {
        self.disks[member].copy()
    }

    /// Gives a member that does not run the data that it had then.
    pub fn put_back(&self, member: usize, copy: &Disk) {
        self.disks[member].put_back(copy);
    }

    /// Starts it again as a new container of its pod.
    pub async fn restart(&mut self, scene: &Scene, member: usize) -> String {
        self.start(member);
        container(scene, &self.name(member), self.doors[member], true).await
    }

    /// Waits until every member is unsealed and one of them is active; which one.
    pub async fn whole(&self) -> usize {
        within(
            PATIENCE,
            "every member is unsealed, one of them active",
            async || {
                let mut active = Err("none is active".to_owned());
                for (member, client) in self.clients.iter().enumerate() {
                    if client.sealed().await != Some(false) {
                        let log = self.servers[member]
                            .as_ref()
                            .map_or_else(String::new, Server::log);
                        let tail: Vec<&str> = log
                            .lines()
                            .rev()
                            .filter(|line| !line.contains("barrier not initialized"))
                            .take(20)
                            .collect();
                        return Err(format!("member {member} is sealed or silent: {tail:#?}"));
                    }
                    let leader = client.ask("GET", "sys/leader", "", &Value::Null).await;
                    if leader.is_some_and(|(_, body)| body["is_self"] == true) {
                        active = Ok(member);
                    }
                }
                active
            },
        )
        .await
    }

    /// The active member, if one says that it is.
    pub async fn active(clients: &[Client]) -> Option<usize> {
        for (member, client) in clients.iter().enumerate() {
            let leader = client.ask("GET", "sys/leader", "", &Value::Null).await;
            if leader.is_some_and(|(_, body)| body["is_self"] == true) {
                return Some(member);
            }
        }
        None
    }

    /// Waits until every member has written everything that the cluster has agreed on.
    pub async fn even(&self) {
        within(PATIENCE, "every member has everything", async || {
            let mut indices = BTreeSet::new();
            for client in &self.clients {
                let (_, leader) = client
                    .ask("GET", "sys/leader", "", &Value::Null)
                    .await
                    .unwrap_or_default();
                for field in ["raft_committed_index", "raft_applied_index"] {
                    indices.insert(leader[field].as_u64());
                }
            }
            (indices.len() == 1 && !indices.contains(&None))
                .then_some(())
                .ok_or_else(|| format!("{indices:?}"))
        })
        .await;
    }

    /// Writes a value, at the active member.
    pub async fn write(&self, value: &str) {
        let active = &self.clients[self.whole().await];
        let mount = json!({"type": "kv", "options": {"version": "1"}});
        active.ask("POST", "sys/mounts/kv", &self.token, &mount).await;
        within(PATIENCE, "the value is written", async || {
            let answer = active
                .ask("POST", "kv/drill", &self.token, &json!({"value": value}))
                .await;
            match answer {
                Some((200 | 204, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Reads it at a member; `None` when it does not answer with it. Standbys send on to the active one.
    pub async fn read(&self, member: usize) -> Option<String> {
        read(&self.clients[member], &self.token).await
    }
}

/// Reads the value at a server.
pub async fn read(client: &Client, token: &str) -> Option<String> {
    let (_, body) = client.ask("GET", "kv/drill", token, &Value::Null).await?;
    body["data"]["value"].as_str().map(ToOwned::to_owned)
}

/// What it cost that the active member was killed again and again under a client that reads.
#[derive(Debug, Default)]
pub struct Toll {
    /// For each kill, how long the restarted member took from its first answer until it said that it is unsealed.
    pub unsealed: Vec<Duration>,
    /// For each kill, how long until every member was unsealed and one of them active.
    pub whole: Vec<Duration>,
    /// Reads that were answered with the value.
    pub reads: usize,
    /// Reads that no member answered.
    pub failed: usize,
    /// The longest time without an answer.
    pub longest: Duration,
}

impl Cluster {
    /// Kills the active member and starts it again at once, for as long as `more` says of the kills so far, while a client
    /// reads what [`Cluster::write`] wrote. Between two kills it gets some answers.
    ///
    /// # Panics
    /// When the cluster does not come back within [`PATIENCE`].
    pub async fn kill_the_active(
        &mut self,
        scene: &Scene,
        value: &str,
        more: impl Fn(usize) -> bool,
    ) -> Toll {
        self.write(value).await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let reads = Arc::<AtomicUsize>::default();
        let reader = tokio::spawn(keep_reading(
            self.clients.clone(),
            self.token.clone(),
            value.to_owned(),
            reads.clone(),
            stopped,
        ));
        let mut toll = Toll::default();
        while more(toll.unsealed.len()) {
            let active = self.whole().await;
            let killed = Instant::now();
            self.kill(active);
            self.restart(scene, active).await;
            toll.unsealed.push(until_unsealed(&self.clients[active]).await);
            self.whole().await;
            toll.whole.push(killed.elapsed());
            let enough = reads.load(Ordering::SeqCst) + BETWEEN;
            within(PATIENCE, "the client is answered", async || {
                let now = reads.load(Ordering::SeqCst);
                (now >= enough).then_some(()).ok_or_else(|| now.to_string())
            })
            .await;
        }
        let _ = stop.send(true);
        (toll.failed, toll.longest) = reader.await.unwrap();
        toll.reads = reads.load(Ordering::SeqCst);
        toll
    }
}

/// From the first answer of a server that starts until it says that it is unsealed.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub async fn until_unsealed(client: &Client) -> Duration {
    let started = Instant::now();
    let mut first = None;
    loop {
        let sealed = client.sealed().await;
        let now = Instant::now();
        if sealed.is_some() {
            first.get_or_insert(now);
        }
        if sealed == Some(false) {
            return now - first.unwrap_or(now);
        }
        assert!(started.elapsed() < PATIENCE, "a server stayed sealed or silent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads as a client does that knows all members and asks the next when one does not answer: reads without an answer, and the
/// longest time without one.
async fn keep_reading(
    clients: Vec<Client>,
    token: String,
    value: String,
    reads: Arc<AtomicUsize>,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> (usize, Duration) {
    let (mut failed, mut longest) = (0, Duration::ZERO);
    let mut answered = Instant::now();
    while !*stopped.borrow() {
        let mut found = false;
        for client in &clients {
            if read(client, &token).await.as_deref() == Some(&*value) {
                found = true;
                break;
            }
        }
        if found {
            reads.fetch_add(1, Ordering::SeqCst);
            longest = longest.max(answered.elapsed());
            answered = Instant::now();
        } else {
            failed += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (failed, longest)
}
