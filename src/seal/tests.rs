//! The decisions from end to end, as values: a manifest, a world, a plan, a status.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{
    checks::{Findings, account_allowed, check, key_allowed, key_granted},
    model::{Model, parse},
    observed::{Failure, Memory, NamespaceFacts, Observed, Repairs, SecretFacts},
    outcome::{Described, KeyOutcome, Outcomes, SealOutcome, TargetOutcome},
    plan::{Plan, Write, plan},
    status::{next_look, prune, status},
    *,
};
use crate::api::{Reason, SealConfig, SealConfigStatus, SealHealth};

const ARN: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER: &str = "arn:aws:kms:eu-west-1:123456789012:key/ffffabcd-12ab-34cd-56ef-1234567890ab";

fn spec() -> Value {
    json!({
        "seals": [
            {"name": "second", "priority": 60, "awskms": {"kmsKeyID": OTHER, "credentials": {"secretRef": {"name": "aws"}}}},
            {"name": "first", "awskms": {"kmsKeyID": ARN, "credentials": {"serviceAccountRef": {"name": "app"}}}},
        ],
        "keys": [{"name": "root", "wrapped": [
            {"seal": "second", "format": "kms", "inline": "c2Vjb25k"},
            {"seal": "first", "format": "kms", "inline": "Zmlyc3Q="},
        ]}],
        "targets": [{"name": "app", "secret": {"name": "app-key"}}],
    })
}

fn model(spec: Value) -> Model {
    let mut config = json!({
        "apiVersion": "autounseal.dev/v1alpha1",
        "kind": "SealConfig",
        "metadata": {"name": "app", "namespace": "team", "uid": "uid-1", "generation": 3},
    });
    config["spec"] = spec;
    parse(&serde_json::from_value::<SealConfig>(config).unwrap()).unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn world() -> Observed {
    Observed {
        credentials: BTreeMap::new(),
        now: now(),
        jitter: 0.5,
        namespace: NamespaceFacts::default(),
        endpoints: endpoint::EndpointPolicy::default(),
        sources: BTreeMap::new(),
        secrets: BTreeMap::new(),
        relics: BTreeMap::new(),
        plain: BTreeMap::new(),
        store: store::StoreFacts::default(),
        old_copy_retention: jiff::SignedDuration::from_hours(168),
        read_secrets: std::collections::BTreeSet::new(),
        living: ["uid-1".to_owned()].into(),
        pods: Vec::new(),
        cluster_id: None,
        status: SealConfigStatus::default(),
        memory: Memory::default(),
    }
}

fn look(model: &Model, observed: &Observed) -> (Findings, Plan) {
    let findings = check(model, observed);
    let plan = plan(model, observed, &findings);
    (findings, plan)
}

/// The world after everything that the first plan asked for went well.
fn delivered(model: &Model) -> Observed {
    let mut observed = world();
    let (findings, plan) = look(model, &observed);
    let mut outcomes = Outcomes::default();
    for seal in &model.seals {
        let at = now();
        let arn = seal.cloud.configured_key();
        let described = Some(Described::Key {
            arn,
            version: None,
            at,
            fault: None,
        });
        let outcome = SealOutcome {
            described,
            identity: None,
            opened: true,
        };
        outcomes.seals.insert(seal.name.clone(), outcome);
    }
    for open in &plan.opens {
        let outcome = KeyOutcome {
            agreed: open.seals.iter().cloned().collect(),
            opened_by: open.seals.first().cloned(),
            consumer_key_id: Some("root-v1".into()),
            stored: None,
        };
        outcomes.keys.insert(open.key.clone(), outcome);
    }
    for delivery in &plan.deliveries {
        let outcome = TargetOutcome::Delivered {
            resource_version: "7".into(),
            inputs: delivery.inputs.clone(),
            content_changed: now(),
            deliveries: 1,
        };
        outcomes.targets.insert(delivery.target.clone(), outcome);
    }
    let secret = SecretFacts {
        uid: "secret-uid".into(),
        resource_version: "7".into(),
        owner_uid: Some("uid-1".into()),
        ..SecretFacts::default()
    };
    observed.secrets.insert("app-key".into(), secret);
    observed.status = status(model, &observed, &findings, &outcomes);
    observed
}

fn reason(observed: &Observed, model: &Model, kind: &str) -> (String, String) {
    let (findings, _) = look(model, observed);
    let told = status(model, observed, &findings, &Outcomes::default());
    let condition = told
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .unwrap();
    (condition.status.clone(), condition.reason.clone())
}

#[test]
fn the_first_look_opens_every_copy_by_priority_and_creates_the_secret() {
    let (_, plan) = look(&model(spec()), &world());
    assert_eq!(plan.probes, ["first", "second"]);
    assert_eq!(plan.opens[0].seals, ["first", "second"]);
    assert!(plan.opens[0].all);
    assert_eq!(plan.deliveries[0].write, Write::Create);
    insta::assert_snapshot!(plan.to_string(), @r#"
    describe the key of seal "first"
    describe the key of seal "second"
    open every copy of and compare key "root" with seals first, second
    create the Secret of target "app" with keys root
    "#);
}

#[test]
fn what_is_delivered_asks_for_nothing_and_its_status_stands_still() {
    let model = model(spec());
    let observed = delivered(&model);
    let (findings, plan) = look(&model, &observed);
    assert!(plan.is_empty(), "{plan}");
    let again = status(&model, &observed, &findings, &Outcomes::default());
    assert_eq!(again, observed.status);
    assert_eq!(
        reason(&observed, &model, "Ready"),
        ("True".into(), "Ready".into())
    );
    let wait = next_look(&model, &observed, &findings, &Outcomes::default()).unwrap();
    assert!(wait.as_secs() >= 3600, "the next look is the hourly probe");
}

#[test]
fn a_secret_that_was_touched_or_deleted_costs_one_decrypt() {
    let model = model(spec());
    let mut observed = delivered(&model);
    observed.secrets.get_mut("app-key").unwrap().resource_version = "8".into();
    let (_, plan) = look(&model, &observed);
    assert!(!plan.opens[0].all && plan.deliveries[0].repair);
    assert_eq!(
        plan.deliveries[0].write,
        Write::Update {
            uid: "secret-uid".into()
        }
    );
    observed.secrets.clear();
    let (_, plan) = look(&model, &observed);
    assert!(!plan.opens[0].all && plan.deliveries[0].repair);
    assert_eq!(plan.deliveries[0].write, Write::Create);
}

#[test]
fn a_fight_over_a_secret_is_told_and_waits() {
    let model = model(spec());
    let mut observed = delivered(&model);
    observed.secrets.clear();
    let ago = |seconds| now().saturating_sub(SignedDuration::from_secs(seconds)).unwrap();
    let repairs = observed.memory.repairs.entry("app".into()).or_default();
    for at in [70, 50, 20, 1] {
        repairs.add(ago(at));
    }
    let (findings, plan) = look(&model, &observed);
    assert!(plan.is_empty());
    assert_eq!(reason(&observed, &model, "SecretsDelivered").1, "SecretContested");
    let wait = next_look(&model, &observed, &findings, &Outcomes::default()).unwrap();
    assert_eq!(wait.as_secs(), 10);
}

#[test]
fn a_clock_that_was_days_ahead_keeps_nobody_waiting_for_days() {
    let ahead = now().saturating_add(SignedDuration::from_hours(72)).unwrap();
    let failed = |inputs: String, at: jiff::Timestamp| Failure {
        inputs,
        fault: Fault::transient(Reason::KmsUnavailable, "no"),
        times: 1,
        at,
        retry_at: at.saturating_add(SignedDuration::from_secs(5)).unwrap(),
    };
    let model = model(spec());
    let seal = &model.seals[0];
    let probes = |observed: &Observed| look(&model, observed).1.probes.contains(&seal.name);
    let mut observed = delivered(&model);
    assert!(!probes(&observed));
    // When a seal was last looked at, as another operator or this one wrote it down.
    for status in &mut observed.status.seals {
        status.last_probe_time = Some(Time(ahead));
    }
    assert!(probes(&observed));
    // What failed is tried again, and not while the clock is right.
    let inputs = digest::seal_inputs(seal);
    for (at, due) in [(now(), false), (ahead, true)] {
        let failure = failed(inputs.clone(), at);
        observed.memory.probes.insert(seal.name.clone(), failure);
        assert_eq!(probes(&observed), due, "{at}");
    }
    let mut observed = delivered(&model);
    observed.secrets.clear();
    for (at, waits) in [(now(), true), (ahead, false)] {
        let mut repairs = Repairs::default();
        (0..3).for_each(|_| repairs.add(at));
        observed.memory.repairs.insert("app".into(), repairs);
        assert_eq!(
            look(&model, &observed).1.deliveries.is_empty(),
            waits,
            "repairs of {at}"
        );
    }
    observed.memory.repairs.clear();
    let (findings, _) = look(&model, &observed);
    for (at, waits) in [(now(), true), (ahead, false)] {
        let failure = failed(findings.key_inputs["root"].clone(), at);
        observed.memory.keys.insert("root".into(), failure);
        assert_eq!(look(&model, &observed).1.opens.is_empty(), waits, "a key of {at}");
    }
}

#[test]
fn changed_inputs_open_every_copy_again_and_leave_the_secret_until_then() {
    let model_before = model(spec());
    let mut observed = delivered(&model_before);
    let mut changed = spec();
    changed["keys"][0]["wrapped"][1]["inline"] = json!("YW5vdGhlcg==");
    let model = model(changed);
    let (findings, plan) = look(&model, &observed);
    assert!(plan.opens[0].all && !plan.deliveries[0].repair);
    // Both copies fail: the fault is told, and the record of what was delivered stays.
    for seal in ["first", "second"] {
        let id = ("root".to_owned(), seal.to_owned());
        let failure = Failure {
            inputs: findings.copy_inputs[&id].clone(),
            fault: Fault::denied(Reason::AccessDenied, "no"),
            times: 1,
            at: now(),
            retry_at: now().saturating_add(SignedDuration::from_secs(5)).unwrap(),
        };
        observed.memory.copies.insert(id, failure);
    }
    let (findings, plan) = look(&model, &observed);
    assert!(plan.is_empty(), "nothing is tried before its time");
    let told = status(&model, &observed, &findings, &Outcomes::default());
    assert_eq!(
        reason(&observed, &model, "Ready"),
        ("False".into(), "AccessDenied".into())
    );
    assert_eq!(reason(&observed, &model, "Stalled").0, "True");
    assert_eq!(told.targets[0].resource_version.as_deref(), Some("7"));
    assert!(told.seals.iter().all(|seal| seal.state == SealHealth::Unhealthy));
    let wait = next_look(&model, &observed, &findings, &Outcomes::default()).unwrap();
    assert_eq!(wait.as_secs(), 5);
}

#[test]
fn what_is_overdue_but_barred_does_not_spin() {
    let mut spec = spec();
    spec["seals"][1]["awskms"]
        .as_object_mut()
        .unwrap()
        .remove("credentials");
    let model = model(spec);
    let mut observed = world();
    let past = now().saturating_sub(SignedDuration::from_secs(5)).unwrap();
    let (findings, _) = look(&model, &observed);
    let id = ("root".to_owned(), "first".to_owned());
    let fault = Fault::denied(Reason::AccessDenied, "no");
    let failure = Failure {
        inputs: findings.copy_inputs[&id].clone(),
        fault,
        times: 1,
        at: past,
        retry_at: past,
    };
    observed.memory.copies.insert(id, failure);
    let last = Some(Time(now()));
    observed.status.seals = vec![crate::api::SealStatus {
        name: "second".into(),
        configured_key_id: Some(OTHER.into()),
        inputs_digest: Some(digest::seal_inputs(model.seal("second").unwrap())),
        last_probe_time: last,
        ..crate::api::SealStatus::default()
    }];
    let wait = next_look(&model, &observed, &findings, &Outcomes::default()).unwrap();
    assert!(wait.as_secs() >= 3600, "{wait:?}");
    observed.memory.copies.insert(
        ("gone".into(), "first".into()),
        observed.memory.copies.values().next().unwrap().clone(),
    );
    prune(&mut observed.memory, &model, &findings);
    assert_eq!(observed.memory.copies.len(), 1);
}

#[test]
fn other_credentials_are_asked_at_once() {
    let model_before = model(spec());
    let observed = delivered(&model_before);
    let mut changed = spec();
    changed["seals"][1]["awskms"]["credentials"]["serviceAccountRef"]["name"] = json!("other");
    let (_, plan) = look(&model(changed), &observed);
    assert_eq!(plan.probes, ["first"]);
    assert!(plan.opens.is_empty(), "no Decrypt: the copies are the same");
}

#[test]
fn a_seal_that_is_told_to_be_unhealthy_for_what_has_passed_is_asked_again_and_a_state_of_its_key_is_not() {
    let model = model(spec());
    let mut observed = delivered(&model);
    let tell = |observed: &mut Observed, reason: Reason| {
        let told = &mut observed.status.seals[0];
        (told.state, told.reason) = (SealHealth::Unhealthy, Some(reason.to_string()));
        told.name.clone()
    };
    for reason in [Reason::KmsUnavailable, Reason::DeliveryFailed, Reason::Throttled] {
        let seal = tell(&mut observed, reason);
        let (findings, plan) = look(&model, &observed);
        assert_eq!(plan.probes, [seal], "{reason}");
        // At the end of the look that left it so, soon; nothing else would wake it.
        let wait = next_look(&model, &observed, &findings, &Outcomes::default()).unwrap();
        assert_eq!(wait.as_secs(), 1, "{reason}");
    }
    for reason in [
        Reason::KeyDisabled,
        Reason::KeyPendingDeletion,
        Reason::KeyUnusable,
    ] {
        tell(&mut observed, reason);
        assert!(look(&model, &observed).1.probes.is_empty(), "{reason}");
    }
    // While a copy of it is tried again anyway, that will tell.
    let seal = tell(&mut observed, Reason::KmsUnavailable);
    let failure = Failure {
        inputs: String::new(),
        fault: Fault::transient(Reason::KmsUnavailable, "no"),
        times: 1,
        at: now(),
        retry_at: now(),
    };
    observed.memory.copies.insert(("root".into(), seal), failure);
    assert!(look(&model, &observed).1.probes.is_empty());
}

#[test]
fn the_operators_identity_needs_a_label_and_a_grant() {
    let mut spec = spec();
    for seal in spec["seals"].as_array_mut().unwrap() {
        seal["awskms"].as_object_mut().unwrap().remove("credentials");
    }
    let model = model(spec.clone());
    let mut observed = world();
    let barred = |observed: &Observed, model: &Model| check(model, observed);
    assert_eq!(barred(&observed, &model).seals.len(), 2);
    observed.namespace.operator_identity = true;
    let findings = barred(&observed, &model);
    assert!(findings.seals.is_empty());
    assert_eq!(findings.copies.len(), 2, "brought keys need the exact ARN");
    observed.namespace.grants.insert(ARN.into());
    let findings = barred(&observed, &model);
    assert_eq!(
        findings
            .copies
            .keys()
            .map(|(_, seal)| seal.as_str())
            .collect::<Vec<_>>(),
        ["second"]
    );

    // A copy that the KMS itself ties to the namespace needs no grant; one tied elsewhere cannot be written.
    spec["keys"][0]["wrapped"][0]["context"] = json!({"autounseal.dev/bound-namespace": "team"});
    let bound = self::model(spec);
    assert!(barred(&observed, &bound).copies.is_empty());
    let key = &bound.keys[0];
    let seal = bound.seal("second").unwrap();
    let facts = &observed.namespace;
    assert!(key_granted(&bound, seal, &key.copies[1], OTHER, facts).is_ok());
    assert!(key_granted(&bound, seal, &key.copies[0], OTHER, facts).is_err());
}

#[test]
fn where_a_namespace_lists_its_keys_no_seal_uses_another_and_an_empty_list_allows_none() {
    let model = model(spec());
    let mut observed = world();
    assert!(check(&model, &observed).seals.is_empty());
    let first = model.seals[0].cloud.full_key().unwrap();
    for (allowed, refused) in [(vec![first.clone()], 1), (vec![], 2)] {
        observed.namespace.allowed_seals = Some(allowed.into_iter().collect());
        let findings = check(&model, &observed);
        assert_eq!(findings.seals.len(), refused);
        for fault in findings.seals.values() {
            assert_eq!(fault.reason, Reason::KeyNotAllowed);
            assert!(fault.message.contains("autounseal.dev/allowed-seals"));
        }
    }
    // Exactly: neither a part of a name nor a name with more behind it.
    for near in [&first[..first.len() - 1], &format!("{first}x"), "*"] {
        observed.namespace.allowed_seals = Some([near.to_owned()].into());
        assert!(key_allowed("team", &first, &observed.namespace).is_err());
    }
}

#[test]
fn a_service_account_that_is_denied_to_seals_says_so_in_its_annotation() {
    let annotated = |value: &str| [("autounseal.dev/use".to_owned(), value.to_owned())].into();
    let fault = account_allowed("app", &annotated("denied")).unwrap_err();
    assert_eq!(fault.reason, Reason::TokenRequestDenied);
    assert!(account_allowed("app", &annotated("allowed")).is_ok());
    assert!(account_allowed("app", &BTreeMap::new()).is_ok());
}

#[test]
fn a_role_through_the_operators_identity_needs_its_own_grant_and_no_external_id() {
    let role = "arn:aws:iam::123456789012:role/unseal";
    let mut spec = spec();
    let seal = spec["seals"][1]["awskms"].as_object_mut().unwrap();
    seal.remove("credentials");
    seal.insert("assumeRole".into(), json!({"roleARN": role}));
    let mut observed = world();
    observed.namespace.operator_identity = true;
    observed.namespace.grants.insert(ARN.into());
    assert!(check(&model(spec.clone()), &observed).seals.contains_key("first"));
    observed.namespace.grants.insert(role.into());
    assert!(check(&model(spec.clone()), &observed).seals.is_empty());
    spec["seals"][1]["awskms"]["assumeRole"]["externalID"] = json!("mine");
    let findings = check(&model(spec), &observed);
    assert_eq!(findings.seals["first"].reason, Reason::OperatorIdentityNotAllowed);
}

#[test]
fn a_secret_of_somebody_else_is_left_alone_unless_both_sides_agree() {
    let mut spec = spec();
    let mut observed = world();
    let foreign = SecretFacts {
        uid: "x".into(),
        resource_version: "1".into(),
        ..SecretFacts::default()
    };
    observed.secrets.insert("app-key".into(), foreign);
    let refused = |observed: &Observed, spec: &Value| {
        let (findings, plan) = look(&model(spec.clone()), observed);
        assert_eq!(findings.targets.contains_key("app"), plan.deliveries.is_empty());
        findings.targets.contains_key("app")
    };
    assert!(refused(&observed, &spec));
    spec["targets"][0]["secret"]["adopt"] = json!(true);
    assert!(refused(&observed, &spec));
    observed.secrets.get_mut("app-key").unwrap().adopt_by = Some("app".into());
    assert!(!refused(&observed, &spec));
    observed.read_secrets.insert("app-key".into());
    assert!(refused(&observed, &spec));
    observed.read_secrets.clear();
    observed.secrets.get_mut("app-key").unwrap().owner_uid = Some("uid-2".into());
    assert!(!refused(&observed, &spec), "its owner is gone");
    observed.living.insert("uid-2".into());
    assert!(refused(&observed, &spec), "its owner lives");
}

#[test]
fn a_suspended_object_does_nothing() {
    let mut spec = spec();
    spec["suspend"] = json!(true);
    assert!(look(&model(spec), &world()).1.is_empty());
}

#[test]
fn another_version_of_credentials_that_are_written_is_another_input() {
    let seal = |include: bool| {
        json!({
            "seals": [{"name": "aws", "use": ["Native"], "awskms": {"kmsKeyID": ARN, "credentials": {"secretRef": {"name": "aws"}}}}],
            "targets": [{"name": "t", "secret": {"name": "t", "env": {"vault": {"seals": ["aws"], "includeCredentials": include}}}}],
        })
    };
    let at = |include: bool, version: &str| {
        let mut observed = world();
        observed.credentials.insert("aws".into(), version.into());
        check(&model(seal(include)), &observed).target_inputs["t"].clone()
    };
    assert_eq!(at(true, "1"), at(true, "1"));
    assert_ne!(at(true, "1"), at(true, "2"));
    assert_eq!(at(false, "1"), at(false, "2"));
}

#[test]
fn rotations_are_a_day_apart_at_least() {
    let rotated = |after: &str| {
        let mut config = json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "app", "namespace": "team", "uid": "uid-1"},
        });
        config["spec"] = spec();
        config["spec"]["keys"] = json!([{"name": "root", "generate": {"rotation": {"after": after}}}]);
        parse(&serde_json::from_value::<SealConfig>(config).unwrap())
    };
    assert!(rotated("24h").is_ok());
    for after in ["23h59m59s", "1s", "0s", "-24h"] {
        assert!(rotated(after).is_err(), "{after}");
    }
}

#[test]
fn sources_and_stores_have_a_size() {
    use crate::api::Armor;
    use model::{MAX_SOURCE, unarmor};
    let packed = |length: usize| data_encoding::BASE64.encode(&vec![7; length]).into_bytes();
    assert!(unarmor(&packed(MAX_SOURCE), Armor::Base64).is_some());
    assert!(unarmor(&packed(MAX_SOURCE + 1), Armor::Base64).is_none());
    assert!(unarmor(&vec![7; MAX_SOURCE + 1], Armor::None).is_none());

    let header = br#"{"format":1,"counter":1,"keys":{}}"#.to_vec();
    let stored = |length: usize| {
        let item = ("key.root.v1.aws".to_owned(), vec![7; length]);
        let data = BTreeMap::from([(store::HEADER.to_owned(), header.clone()), item]);
        store::read(store::Revision::default(), data)
    };
    let room = store::MAX_BYTES - header.len() - store::HEADER.len() - "key.root.v1.aws".len();
    assert!(matches!(stored(room), store::StoreFacts::Found(_)));
    assert!(matches!(stored(room + 1), store::StoreFacts::Corrupt(..)));
}
