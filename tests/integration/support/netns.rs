//! Network namespaces between a pod and an instance metadata service: *pod* → one or more forwarding *nodes* → *imds*.
//!
//! Each node that forwards takes one hop, as the kernel does it on a real node (`net/ipv4/ip_forward.c`). Needs root and
//! iproute2; without them the test fails and says so, rather than pass without having tried.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use super::stage::{repository, unique};

/// Where the service lives, and its IPv6 address.
pub const ADDRESS: &str = "169.254.169.254";
/// The IPv6 address of the service.
pub const ADDRESS_V6: &str = "fd00:ec2::254";

/// The namespaces, the service in the last one, and the way out of the first.
pub struct Network {
    id: String,
    hops: usize,
    folder: PathBuf,
    children: Vec<Child>,
}

impl Network {
    /// Lays it out with this many forwarding nodes. `ports` are those of this machine's loopback that the pod reaches
    /// under the same number on its own.
    pub fn new(nodes: usize, ports: &[u16]) -> Self {
        let id = unique();
        let folder = std::env::temp_dir().join(format!("autounseal-imds-{id}"));
        std::fs::create_dir_all(&folder).unwrap();
        let mut network = Self {
            id,
            hops: nodes,
            folder,
            children: Vec::new(),
        };
        network.lay();
        network.set(&json!({}));
        for address in [ADDRESS, ADDRESS_V6] {
            network.serve(address);
        }
        network.relay(&[], ports);
        network
    }

    /// Carries connections out of the first namespace.
    fn relay(&mut self, other: &[String], ports: &[u16]) {
        let socket = self.folder.join("relay.sock");
        let relay = repository("tests/support/imds/relay.py");
        let mut outside = Command::new(python());
        outside.arg(&relay).arg("outside").arg(&socket);
        self.start(outside);
        let mut inside = command_in(&self.pod(), Path::new(&python()));
        inside.arg(&relay).arg("inside").arg(&socket).args(other);
        inside.args(ports.iter().map(ToString::to_string));
        self.start(inside);
    }

    fn name(&self, place: usize) -> String {
        // Interface names have at most 15 characters, and carry this one.
        format!("au{}{place}", self.id)
    }

    fn pod(&self) -> String {
        self.name(0)
    }

    fn imds(&self) -> String {
        self.name(self.hops + 1)
    }

    /// The namespaces in a row, a link between each two: 10.77.N.0/30 and fd77:N::/64.
    fn lay(&self) {
        let last = self.hops + 1;
        for place in 0..=last {
            ip(&["netns", "add", &self.name(place)]);
            self.ip_in(place, &["link", "set", "lo", "up"]);
            for (setting, value) in [
                ("ipv4/ip_forward", 1),
                ("ipv6/conf/all/forwarding", 1),
                // 169.254.0.0/16 is link-local, and comes from further away here.
                ("ipv4/conf/all/rp_filter", 0),
                ("ipv4/conf/default/rp_filter", 0),
                // Else who asks second within a second is not told that there is no way.
                ("ipv4/icmp_ratelimit", 0),
                ("ipv6/conf/all/accept_dad", 0),
                ("ipv6/conf/default/accept_dad", 0),
            ] {
                let write = format!("echo {value} > /proc/sys/net/{setting}");
                run(Command::new("ip").args(["netns", "exec", &self.name(place), "sh", "-c", &write]));
            }
        }
        for place in 0..last {
            let (right, left) = (format!("r{place}"), format!("l{}", place + 1));
            ip(&[
                "link",
                "add",
                &right,
                "netns",
                &self.name(place),
                "type",
                "veth",
                "peer",
                "name",
                &left,
                "netns",
                &self.name(place + 1),
            ]);
            for (own, link, host) in [(place, &right, 1), (place + 1, &left, 2)] {
                self.ip_in(
                    own,
                    &["addr", "add", &format!("10.77.{place}.{host}/30"), "dev", link],
                );
                let v6 = format!("fd77:{place}::{host}/64");
                self.ip_in(own, &["addr", "add", &v6, "dev", link, "nodad"]);
                self.ip_in(own, &["link", "set", link, "up"]);
            }
        }
        // Everything to the right goes right, everything to the left goes left.
        for place in 0..=last {
            if place < last {
                let (v4, v6) = (format!("10.77.{place}.2"), format!("fd77:{place}::2"));
                self.ip_in(place, &["route", "add", "default", "via", &v4]);
                self.ip_in(place, &["-6", "route", "add", "default", "via", &v6]);
            }
            for further in 0..place.saturating_sub(1) {
                let before = place - 1;
                let (v4, v6) = (format!("10.77.{before}.1"), format!("fd77:{before}::1"));
                self.ip_in(
                    place,
                    &["route", "add", &format!("10.77.{further}.0/30"), "via", &v4],
                );
                self.ip_in(
                    place,
                    &["-6", "route", "add", &format!("fd77:{further}::/64"), "via", &v6],
                );
            }
        }
        self.ip_in(last, &["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        self.ip_in(
            last,
            &["addr", "add", &format!("{ADDRESS_V6}/128"), "dev", "lo", "nodad"],
        );
    }

    fn ip_in(&self, place: usize, arguments: &[&str]) {
        let name = self.name(place);
        ip(&[&["-n", &name], arguments].concat());
    }

    fn serve(&mut self, address: &str) {
        let server = repository("tests/support/imds/server.py");
        let mut command = command_in(&self.imds(), Path::new(&python()));
        command.arg(server).args([address, "80"]).arg(self.state());
        self.start(command);
    }

    fn start(&mut self, mut command: Command) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{command:?} did not start");
        self.children.push(child);
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state.json")
    }

    /// The first node drops what is for this address without a word, as a network policy does.
    pub fn drops(&self, address: &str) {
        self.ip_in(1, &["route", "add", "blackhole", &format!("{address}/32")]);
    }

    /// How the service behaves from now on; see `tests/support/imds/server.py`.
    pub fn set(&self, state: &Value) {
        let next = self.folder.join("next.json");
        std::fs::write(&next, state.to_string()).unwrap();
        std::fs::rename(next, self.state()).unwrap();
    }

    /// What the service was asked: method, path, and whether with a valid token.
    pub fn seen(&self) -> Vec<(String, String, bool)> {
        let log = std::fs::read_to_string(self.folder.join("state.json.log")).unwrap_or_default();
        log.lines()
            .map(|line| {
                let entry: Value = serde_json::from_str(line).unwrap();
                let text = |name: &str| entry[name].as_str().unwrap().to_owned();
                (text("method"), text("path"), entry["token"].as_bool().unwrap())
            })
            .collect()
    }

    /// The words before a program that put it into the pod's namespace.
    pub fn pod_launcher(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.pod()]
            .map(ToOwned::to_owned)
            .to_vec()
    }
}

/// One namespace with nothing but loopback, on which a metadata service of this machine answers under its fixed address.
pub struct Instance(Network);

impl Instance {
    /// `metadata` and `ports` are those of this machine's loopback; the latter are reached under the same numbers.
    pub fn new(metadata: u16, ports: &[u16]) -> Self {
        let id = unique();
        let folder = std::env::temp_dir().join(format!("autounseal-instance-{id}"));
        std::fs::create_dir_all(&folder).unwrap();
        let mut network = Network {
            id,
            hops: 0,
            folder,
            children: Vec::new(),
        };
        ip(&["netns", "add", &network.pod()]);
        network.ip_in(0, &["link", "set", "lo", "up"]);
        network.ip_in(0, &["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        network.relay(&[format!("{ADDRESS}:80={metadata}")], ports);
        Self(network)
    }

    /// The words before a program that put it there.
    pub fn launcher(&self) -> Vec<String> {
        self.0.pod_launcher()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for place in 0..=self.hops + 1 {
            // One that stands alone has no second.
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(place)])
                .stderr(Stdio::null())
                .status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn command_in(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

fn python() -> String {
    std::env::var("AUTOUNSEAL_PYTHON").expect("run the tests with cargo xtask, which gives AUTOUNSEAL_PYTHON")
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn run(command: &mut Command) {
    let done = command.output();
    let done = done.unwrap_or_else(|error| {
        panic!("the hop limit is tested in network namespaces, which need root and iproute2 (ip): {error}")
    });
    assert!(
        done.status.success(),
        "the hop limit is tested in network namespaces, which could not be made here (they need root and iproute2): {command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
