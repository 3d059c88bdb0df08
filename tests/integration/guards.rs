//! The admission policies of the chart that hold the operator itself (security rule S18): with the operator's own token,
//! what RBAC allows and it never needs is tried, and refused.

use serde_json::{Value, json};

use crate::support::{
    helm::{Release, file, kubectl},
    plane::eventually,
    stage::{Stage, unique},
};

/// The operator of a release, as who took over its token would use it.
struct Thief {
    kubeconfig: String,
    namespace: String,
}

impl Thief {
    fn tries(&self, words: &[&str]) -> (bool, String) {
        kubectl(
            &[
                &["--kubeconfig", &self.kubeconfig, "--namespace", &self.namespace],
                words,
            ]
            .concat(),
        )
    }

    fn may(&self, words: &[&str]) {
        let (fine, said) = self.tries(words);
        assert!(fine, "{words:?}: {said}");
    }

    fn may_not(&self, words: &[&str], why: &str) {
        if let Err(said) = self.refused(words, why) {
            panic!("{words:?}: {said}");
        }
    }

    fn refused(&self, words: &[&str], why: &str) -> Result<(), String> {
        let (fine, said) = self.tries(words);
        // Said by the policy: by RBAC it is allowed.
        let told = !fine && said.contains("ValidatingAdmissionPolicy") && said.contains(why);
        told.then_some(()).ok_or(said)
    }

    async fn of(release: &Release, stage: &Stage) -> Self {
        Self {
            kubeconfig: release.kubeconfig().await,
            namespace: stage.namespace.clone(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_token_gets_tokens_for_sts_only_for_an_hour_and_none_of_the_clusters_own_accounts() {
    let stage = Stage::bare("guard-tokens", &json!({})).await;
    let plane = &stage.plane;
    let system = format!("guarded-{}", unique());
    for (namespace, name) in [(stage.namespace.as_str(), "app"), ("kube-system", &system)] {
        plane
            .create(
                &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}}),
            )
            .await;
    }
    let own = "https://kubernetes.default.svc";
    let values = json!({"tenantNamespaces": [stage.namespace, "kube-system"]});
    let release = Release::install(plane, values).await;
    let thief = Thief::of(&release, &stage).await;
    let sts = "--audience=sts.amazonaws.com";
    eventually("the policy in force", async || {
        thief.refused(&["create", "token", "app", "--audience=vault"], "audiences")
    })
    .await;
    thief.may(&["create", "token", "app", sts]);
    thief.may(&[
        "create",
        "token",
        "app",
        "--audience=sts.amazonaws.com.cn",
        "--duration=10m",
    ]);
    // The apiserver's own, asked for by name or by default, and beside an allowed one.
    let by_name = format!("--audience={own}");
    let plain = ["create", "token", "app"].as_slice();
    for audiences in [
        [].as_slice(),
        &[by_name.as_str()],
        &[sts, by_name.as_str()],
        &["--audience=sts.amazonaws.com.evil.example"],
    ] {
        thief.may_not(&[plain, audiences].concat(), "audiences");
    }
    thief.may_not(&["create", "token", "app", sts, "--duration=61m"], "an hour");
    let elsewhere = ["create", "token", &system, sts, "--namespace", "kube-system"];
    thief.may_not(&elsewhere, "the cluster's own namespaces");
    // Others are not held by it.
    let (fine, said) = kubectl(&["create", "token", "app", "--namespace", &stage.namespace]);
    assert!(fine, "{said}");
    drop(release);

    // OKE's workload identity needs the apiserver's own audience, which the chart then names.
    let values =
        json!({"tenantNamespaces": [stage.namespace], "admissionPolicies": {"tokenAudiences": [own]}});
    let release = Release::install(plane, values).await;
    let thief = Thief::of(&release, &stage).await;
    eventually("the policy in force", async || {
        thief.refused(&["create", "token", "app", "--audience=vault"], "audiences")
    })
    .await;
    thief.may(&["create", "token", "app", &by_name]);
    plane.delete("ServiceAccount", "kube-system", &system).await;
}

fn workload(stage: &Stage, kind: &str, name: &str, consent: bool) -> Value {
    let mut object = stage.object("apps/v1", kind, name);
    object["metadata"]["annotations"] = json!({"team": "us"});
    if consent {
        object["metadata"]["annotations"]["autounseal.dev/restart"] = json!("allowed");
    }
    object["spec"] = json!({
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}, "annotations": {"kept": "yes"}},
            "spec": {"containers": [{"name": "main", "image": "registry.example.com/app:1", "env": [{"name": "A", "value": "b"}]}]},
        },
    });
    if kind == "StatefulSet" {
        object["spec"]["serviceName"] = json!(name);
    }
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_token_changes_nothing_of_a_workload_but_its_own_two_annotations() {
    let stage = Stage::bare("guard-workloads", &json!({})).await;
    let kinds = ["Deployment", "StatefulSet", "DaemonSet"];
    for kind in kinds {
        stage.plane.create(&workload(&stage, kind, "web", true)).await;
        stage.plane.create(&workload(&stage, kind, "other", false)).await;
    }
    let values = json!({"tenantNamespaces": [stage.namespace]});
    let release = Release::install(&stage.plane, values).await;
    let thief = Thief::of(&release, &stage).await;
    let ours = json!({
        "metadata": {"annotations": {"autounseal.dev/restarts": "2026-01-01T00:00:00Z"}},
        "spec": {"template": {"metadata": {"annotations": {"autounseal.dev/delivered": "2"}}}},
    });
    let patch = |kind: &str, name: &str, patch: &Value| {
        ["patch", kind, name, "--type=merge", "-p", &patch.to_string()].map(str::to_owned)
    };
    eventually("the policy in force", async || {
        let words = patch("deployment", "other", &ours);
        thief.refused(
            &words.each_ref().map(String::as_str),
            "autounseal.dev/restart=allowed",
        )
    })
    .await;
    for kind in kinds {
        let tries = |name: &str, change: &Value| patch(kind, name, change);
        let words = tries("web", &ours);
        thief.may(&words.each_ref().map(String::as_str));
        let mut again = ours.clone();
        again["spec"]["template"]["metadata"]["annotations"]["autounseal.dev/delivered"] = json!("3");
        let words = tries("web", &again);
        thief.may(&words.each_ref().map(String::as_str));

        let words = tries("other", &ours);
        thief.may_not(
            &words.each_ref().map(String::as_str),
            "autounseal.dev/restart=allowed",
        );
        let both = json!({"metadata": {"annotations": {"autounseal.dev/restart": "allowed"}}});
        let words = tries("other", &both);
        thief.may_not(
            &words.each_ref().map(String::as_str),
            "autounseal.dev/restart=allowed",
        );
        let container = |change: Value| {
            let mut container = json!({"name": "main", "image": "registry.example.com/app:1", "env": [{"name": "A", "value": "b"}]});
            for (name, value) in change.as_object().unwrap() {
                container[name] = value.clone();
            }
            json!({"spec": {"template": {"spec": {"containers": [container]}}}})
        };
        for change in [
            json!({"metadata": {"annotations": {"team": "them"}}}),
            json!({"metadata": {"annotations": {"team": null}}}),
            json!({"metadata": {"annotations": {"more": "1"}}}),
            json!({"metadata": {"labels": {"more": "1"}}}),
            json!({"metadata": {"finalizers": ["example.com/stays"]}}),
        ] {
            let words = tries("web", &change);
            thief.may_not(&words.each_ref().map(String::as_str), "own metadata");
        }
        for change in [
            container(json!({"image": "registry.example.com/evil:1"})),
            container(json!({"command": ["sh"]})),
            container(json!({"env": []})),
            json!({"spec": {"template": {"spec": {"serviceAccountName": "admin"}}}}),
            json!({"spec": {"template": {"spec": {"hostPID": true}}}}),
            json!({"spec": {"template": {"metadata": {"labels": {"more": "1"}}}}}),
            json!({"spec": {"template": {"metadata": {"annotations": {"kept": null}}}}}),
            json!({"spec": {"template": {"metadata": {"annotations": {"more": "1"}}}}}),
            json!({"spec": {"minReadySeconds": 7}}),
            json!({"spec": {"revisionHistoryLimit": 0}}),
        ] {
            let words = tries("web", &change);
            thief.may_not(&words.each_ref().map(String::as_str), "workload's spec");
        }
    }
}

fn secret(stage: &Stage, name: &str, of_type: &str, annotations: Value) -> Value {
    let mut object = stage.object("v1", "Secret", name);
    object["metadata"]["annotations"] = annotations;
    object["type"] = json!(of_type);
    object["stringData"] = json!({"entry": "value"});
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_token_writes_and_deletes_no_secret_that_is_not_ours() {
    let stage = Stage::bare("guard-secrets", &json!({})).await;
    let plane = &stage.plane;
    let mine = json!({"autounseal.dev/owner-uid": "u1", "autounseal.dev/sealconfig": "one"});
    let theirs = json!({"autounseal.dev/owner-uid": "u2", "autounseal.dev/sealconfig": "two"});
    for (name, of_type, annotations) in [
        ("foreign", "Opaque", json!({})),
        ("willing", "Opaque", json!({"autounseal.dev/adopt-by": "one"})),
        ("two", "Opaque", theirs.clone()),
        ("two.sealconfig.wrapped", "Opaque", json!({})),
        ("fake.sealconfig.wrapped", "Opaque", json!({})),
    ] {
        plane.create(&secret(&stage, name, of_type, annotations)).await;
    }
    let values = json!({"tenantNamespaces": [stage.namespace], "rights": {"storeDeletion": true}});
    let release = Release::install(plane, values).await;
    let thief = Thief::of(&release, &stage).await;
    let given = |object: &Value| file(&object.to_string());
    let spoil = json!({"data": {"entry": "c3BvaWx0"}}).to_string();
    let patch = |name: &'static str, with: &str| {
        ["patch", "secret", name, "--type=merge", "-p", with].map(str::to_owned)
    };
    eventually("the policy in force", async || {
        let words = patch("foreign", &spoil);
        let words = [
            words.each_ref().map(String::as_str).as_slice(),
            &["--dry-run=server"],
        ]
        .concat();
        thief.refused(&words, "owner-uid")
    })
    .await;

    // Made: ours, of the types of the contract.
    let store = "autounseal.dev/wrapped";
    for (name, of_type, annotations) in [
        ("ours", "Opaque", mine.clone()),
        ("ours.sealconfig.wrapped", store, json!({})),
    ] {
        thief.may(&[
            "create",
            "-f",
            &given(&secret(&stage, name, of_type, annotations)),
        ]);
    }
    let mut for_account = mine.clone();
    for_account["kubernetes.io/service-account.name"] = json!("default");
    for (name, of_type, annotations, why) in [
        ("x1", "Opaque", json!({}), "owner-uid"),
        ("x2", "kubernetes.io/service-account-token", for_account, "types"),
        ("x3", "bootstrap.kubernetes.io/token", mine.clone(), "types"),
        ("x4", "example.com/other", mine.clone(), "types"),
        ("x5", store, mine.clone(), "types"),
    ] {
        let object = given(&secret(&stage, name, of_type, annotations));
        thief.may_not(&["create", "-f", &object], why);
    }

    // Changed: ours, and who consented. To call it ours is not enough.
    let claim = |annotations: &Value| {
        json!({"metadata": {"annotations": annotations}, "data": {"entry": "c3BvaWx0"}}).to_string()
    };
    for (name, with) in [
        ("ours", spoil.clone()),
        ("ours.sealconfig.wrapped", spoil.clone()),
        ("willing", claim(&mine)),
    ] {
        thief.may(&patch(name, &with).each_ref().map(String::as_str));
    }
    for (name, with, why) in [
        ("foreign", spoil.clone(), "owner-uid"),
        ("foreign", claim(&mine), "of its SealConfigs only"),
        ("two", claim(&mine), "of its SealConfigs only"),
        ("fake.sealconfig.wrapped", spoil.clone(), "owner-uid"),
    ] {
        thief.may_not(&patch(name, &with).each_ref().map(String::as_str), why);
    }
    plane
        .create(&secret(
            &stage,
            "willing-for-two",
            "Opaque",
            json!({"autounseal.dev/adopt-by": "two"}),
        ))
        .await;
    thief.may_not(
        &patch("willing-for-two", &claim(&mine))
            .each_ref()
            .map(String::as_str),
        "of its SealConfigs only",
    );

    // Deleted: stores.
    for name in ["ours", "foreign", "fake.sealconfig.wrapped"] {
        thief.may_not(&["delete", "secret", name, "--wait=false"], "wrapped stores only");
    }
    thief.may(&["delete", "secret", "ours.sealconfig.wrapped", "--wait=false"]);
    let left = plane.get("Secret", &stage.namespace, "foreign").await.unwrap();
    assert_eq!(left["data"]["entry"], "dmFsdWU=");
}
