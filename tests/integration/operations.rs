//! The commands of docs/operations.md, run as they stand: installed, backed up, lost, restored, upgraded, uninstalled and
//! installed again, no key is lost and none is made anew.

use std::{
    collections::BTreeMap,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
};

use autounseal::{api::KIND, seal::store::name_of};
use serde_json::{Value, json};

use crate::support::{
    binary,
    helm::{Release, folder, program},
    operator::Running,
    plane::eventually,
    scene::Scene,
    stage::{random, repository, unique},
};

/// A page of docs, whose commands a test runs.
struct Page {
    text: String,
    /// Words of the page, and what stands for them here; the longest first.
    names: Vec<(&'static str, String)>,
    /// Where files go.
    folder: PathBuf,
}

impl Page {
    fn new(path: &str, names: Vec<(&'static str, String)>) -> Self {
        let folder = folder();
        for (name, target) in [
            ("kubectl", program("AUTOUNSEAL_KUBECTL")),
            ("helm", program("AUTOUNSEAL_HELM")),
            ("autounseal", binary()),
            ("charts", repository("charts").display().to_string()),
        ] {
            symlink(target, folder.join(name)).unwrap();
        }
        let text = std::fs::read_to_string(repository(path)).unwrap();
        Self { text, names, folder }
    }

    /// Runs the block of that name as a shell would; what it printed.
    fn run(&self, block: &str) -> String {
        let start = format!("<!-- run: {block} -->\n```sh\n");
        let (_, rest) = self
            .text
            .split_once(&start)
            .unwrap_or_else(|| panic!("no block {block}"));
        let mut script = rest.split_once("```").unwrap().0.to_owned();
        for (name, here) in &self.names {
            script = script.replace(name, here);
        }
        let path = format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &script])
            .current_dir(&self.folder)
            .env("PATH", path)
            .env("HELM_CACHE_HOME", self.folder.join("cache"))
            .env("HELM_CONFIG_HOME", self.folder.join("config"))
            .env("HELM_DATA_HOME", self.folder.join("data"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{said}{complaint}");
        said
    }
}

/// What must not be lost: every SealConfig's identity and spec, and every Secret of the namespace.
async fn kept(scene: &Scene) -> BTreeMap<String, Value> {
    let (plane, namespace) = (&scene.stage.plane, &scene.stage.namespace);
    let mut all = BTreeMap::new();
    for config in plane.list("SealConfig", namespace).await {
        let metadata = &config["metadata"];
        all.insert(
            format!("SealConfig {}", metadata["name"]),
            json!([metadata["uid"], metadata["generation"], config["spec"]]),
        );
    }
    for secret in plane.list("Secret", namespace).await {
        let metadata = &secret["metadata"];
        all.insert(
            format!("Secret {}", metadata["name"]),
            json!([metadata["uid"], metadata["resourceVersion"], secret["data"]]),
        );
    }
    all
}

/// An operator as the release runs it now.
async fn started(release: &Release, scene: &Scene) -> Running {
    let operator = release.operator().await;
    operator.env("AWS_ENDPOINT_URL_KMS", scene.kms.url()).start()
}

/// Its own pods look at everything once.
async fn looked(running: &Running, objects: f64) {
    eventually("all were looked at", async || {
        let done = running.metric("autounseal_reconcile_total{", &["outcome=\"ok\""]);
        (done >= objects).then_some(()).ok_or_else(|| running.output())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_restored_upgraded_and_uninstalled_by_the_page_no_key_is_lost_or_made_anew() {
    let scene = Scene::new("operations").await;
    let (stage, plane) = (&scene.stage, &scene.stage.plane);
    let name = format!("ops-{}", unique());
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .await;
    let page = Page::new(
        "docs/operations.md",
        vec![
            // The chart keeps its own name, and the release is called otherwise.
            (
                "install auto-unseal-operator charts",
                format!("install {name} --set crds.install=false charts"),
            ),
            (
                "upgrade auto-unseal-operator charts",
                format!("upgrade {name} charts"),
            ),
            ("uninstall auto-unseal-operator", format!("uninstall {name}")),
            ("--namespace auto-unseal-operator", format!("--namespace {name}")),
            ("sealconfig billing", "sealconfig gone".to_owned()),
            ("--namespace billing", format!("--namespace {}", stage.namespace)),
            ("{billing}", format!("{{{}}}", stage.namespace)),
        ],
    );
    page.run("install");
    let release = Release::found(plane, &name);
    let running = started(&release, &scene).await;
    let brought = random(32);
    scene.deliver("brought", &brought).await;
    let mut made = scene.spec("made", &brought);
    made["keys"] = json!([{"name": "root", "generate": {}}]);
    stage.apply("made", &made).await;
    stage.ready("made").await;
    let before = kept(&scene).await;
    let key = stage.secret("made").await.unwrap();

    // Everything is gone but what was backed up; a cluster that knows nothing gets it back.
    page.run("back up");
    running.stop();
    let store = name_of(KIND, "made");
    for config in ["brought", "made"] {
        plane.delete("SealConfig", &stage.namespace, config).await;
        plane.delete("Secret", &stage.namespace, config).await;
    }
    plane.delete("Secret", &stage.namespace, &store).await;
    assert_eq!(plane.list("SealConfig", &stage.namespace).await.len(), 0);
    let running = started(&release, &scene).await;
    let encrypted = scene.kms.count("Encrypt");
    page.run("restore");
    assert_eq!(stage.secret("made").await.unwrap(), key);
    stage.delivered("brought", &[("root", &brought)]).await;
    assert_eq!(scene.kms.count("Encrypt"), encrypted, "no key was made");
    let restored = kept(&scene).await;
    assert_eq!(
        restored.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    let data = |all: &BTreeMap<String, Value>| all[&format!("Secret {store:?}")][2].clone();
    assert_eq!(
        data(&restored),
        data(&before),
        "the store is the one that was backed up"
    );

    // Other values: nothing is asked of the KMS, nothing is written.
    running.stop();
    let calls = scene.kms.calls().len();
    let shown = page.run("upgrade");
    assert!(shown.contains("made") && shown.contains("brought"), "{shown}");
    let running = started(&release, &scene).await;
    assert!(release.deployment().await["spec"]["replicas"] == 3);
    looked(&running, 2.0).await;
    assert_eq!(kept(&scene).await, restored);
    assert_eq!(scene.kms.calls().len(), calls);

    // Uninstalled, with a SealConfig that waits for an operator.
    let mut gone = made.clone();
    gone["targets"][0]["secret"]["name"] = json!("gone");
    let mut waiting = stage.seal_config("gone", &gone);
    waiting["metadata"]["finalizers"] = json!(["autounseal.dev/wrapped-store"]);
    running.stop();
    plane.apply(&waiting).await;
    let shown = page.run("uninstall");
    for kept in ["brought", "made", &store] {
        assert!(shown.contains(kept), "{shown}");
    }
    plane.delete("SealConfig", &stage.namespace, "gone").await;
    assert!(plane.get("SealConfig", &stage.namespace, "gone").await.is_some());
    page.run("let go");
    assert_eq!(plane.get("SealConfig", &stage.namespace, "gone").await, None);
    assert_eq!(kept(&scene).await, restored);
    for kind in ["Deployment", "Role", "ServiceAccount"] {
        let left = plane.list(kind, &name).await;
        assert!(
            left.iter().all(|one| one["metadata"]["name"] == "default"),
            "{left:?}"
        );
    }
    assert!(plane.list("Role", &stage.namespace).await.is_empty());

    // And installed again it goes on, with a key that it can still open and change.
    page.run("install");
    let running = started(&release, &scene).await;
    looked(&running, 2.0).await;
    assert_eq!(kept(&scene).await, restored);
    assert_eq!(scene.kms.calls().len(), calls);
    plane.delete("Secret", &stage.namespace, "made").await;
    stage.delivered("made", &[("root", &key["root"])]).await;

    page.run("empty a namespace");
    assert!(plane.list("SealConfig", &stage.namespace).await.is_empty());
    running.stop();
}

#[test]
fn every_command_of_these_pages_is_run_or_marked_as_needing_a_cloud() {
    let own = include_str!("operations.rs");
    for page in ["docs/operations.md", "docs/gitops.md"] {
        let text = std::fs::read_to_string(repository(page)).unwrap();
        let mut before = "";
        for line in text.lines() {
            if line == "```sh" {
                let block = before
                    .strip_prefix("<!-- run: ")
                    .and_then(|rest| rest.strip_suffix(" -->"));
                let run = block.is_some_and(|block| own.contains(&format!("page.run(\"{block}\")")));
                assert!(run || before == "<!-- needs a cloud -->", "{page}: {before}");
            }
            before = line;
        }
    }
}
