use super::*;

const KEY: &str = "ocid1.key.oc1.eu-frankfurt-1.v.k";

fn fault_as(subject: &Subject, operation: Operation, context: bool, refusal: Refusal) -> Fault {
    let asked = Asked {
        operation,
        key: KEY,
        tie: if context { Tie::Users } else { Tie::None },
        subject,
    };
    kms(&asked, &Failure::Refused(refusal))
}

fn refusal(status: u16, code: &str) -> Refusal {
    Refusal {
        status,
        code: Some(code.to_owned()),
        ..Refusal::default()
    }
}

#[test]
fn every_answer_has_its_reason() {
    for (operation, context, status, code, reason) in [
        (
            Operation::Decrypt,
            false,
            400,
            "InvalidParameter",
            Reason::CiphertextInvalid,
        ),
        (
            Operation::Decrypt,
            true,
            400,
            "InvalidParameter",
            Reason::ContextMismatch,
        ),
        (
            Operation::Encrypt,
            false,
            400,
            "InvalidParameter",
            Reason::KeyUnusable,
        ),
        (Operation::Decrypt, false, 400, "KeyDisabled", Reason::KeyUnusable),
        (
            Operation::Decrypt,
            false,
            401,
            "NotAuthenticated",
            Reason::CredentialsRejected,
        ),
        (
            Operation::Decrypt,
            false,
            403,
            "NotAuthorized",
            Reason::AccessDenied,
        ),
        (
            Operation::Decrypt,
            false,
            404,
            "NotAuthorizedOrNotFound",
            Reason::AccessDenied,
        ),
        (Operation::GetKey, false, 404, "NotFound", Reason::KeyNotFound),
        (
            Operation::Decrypt,
            false,
            409,
            "IncorrectState",
            Reason::KeyUnusable,
        ),
        (
            Operation::Decrypt,
            false,
            429,
            "TooManyRequests",
            Reason::Throttled,
        ),
        (
            Operation::Decrypt,
            false,
            500,
            "InternalServerError",
            Reason::KmsUnavailable,
        ),
        (Operation::Decrypt, false, 302, "", Reason::KmsUnavailable),
    ] {
        let fault = fault_as(&Subject::Instance, operation, context, refusal(status, code));
        assert_eq!(fault.reason, reason, "{status} {code}");
        assert!(
            fault.message.contains(&format!("status {status})")),
            "{}",
            fault.message
        );
    }
}

#[test]
fn a_missing_policy_is_told_with_the_statement_that_mends_it() {
    let denied = |subject: &Subject| {
        fault_as(
            subject,
            Operation::Decrypt,
            false,
            refusal(404, "NotAuthorizedOrNotFound"),
        )
        .message
    };
    let message = denied(&Subject::Workload {
        namespace: "bao".into(),
        service_account: "openbao".into(),
    });
    assert!(
        message.contains("Allow any-user to use keys in compartment"),
        "{message}"
    );
    assert!(
        message.contains("request.principal.namespace = 'bao'"),
        "{message}"
    );
    assert!(message.contains(&format!("target.key.id = '{KEY}'")), "{message}");
    assert!(denied(&Subject::Instance).contains("Allow dynamic-group"));
    let user = Subject::User {
        user: "ocid1.user.oc1..u".into(),
        other_fingerprint: None,
    };
    assert!(denied(&user).contains("Allow group"));
}

#[test]
fn a_clock_that_is_off_is_told_apart_from_credentials_that_are() {
    let with = |minutes| Refusal {
        skew: Some(Duration::from_mins(minutes)),
        ..refusal(401, "NotAuthenticated")
    };
    let fault = fault_as(&Subject::Instance, Operation::Decrypt, false, with(42));
    assert_eq!(fault.reason, Reason::ClockSkew);
    assert!(fault.message.contains("42 minutes"), "{}", fault.message);
    let fault = fault_as(&Subject::Instance, Operation::Decrypt, false, with(1));
    assert_eq!(fault.reason, Reason::CredentialsRejected);
    assert!(
        !Failure::Refused(with(42)).is_unauthenticated(),
        "a new token would not help"
    );
    assert!(Failure::Refused(with(1)).is_unauthenticated());
}

#[test]
fn a_wrong_fingerprint_is_named_with_the_right_one() {
    let subject = Subject::User {
        user: "ocid1.user.oc1..u".into(),
        other_fingerprint: Some(("00:11".into(), "22:33".into())),
    };
    let fault = fault_as(
        &subject,
        Operation::Decrypt,
        false,
        refusal(401, "NotAuthenticated"),
    );
    assert_eq!(fault.reason, Reason::CredentialsRejected);
    assert!(fault.message.contains("22:33"), "{}", fault.message);
}

#[test]
fn a_refused_token_is_told_as_such() {
    for (status, reason) in [
        (400, Reason::FederationRejected),
        (401, Reason::FederationRejected),
        (403, Reason::FederationRejected),
        (429, Reason::Throttled),
        (500, Reason::FederationRejected),
    ] {
        let failure = Failure::Refused(refusal(status, "Code"));
        assert_eq!(
            federation(&failure, "the service", "do this").reason,
            reason,
            "{status}"
        );
    }
    let failure = Failure::Refused(Refusal {
        skew: Some(Duration::from_mins(9)),
        ..refusal(401, "NotAuthenticated")
    });
    assert_eq!(
        federation(&failure, "the service", "do this").reason,
        Reason::ClockSkew
    );
}

#[test]
fn a_code_is_letters_only() {
    let body = br#"{"code": "NotAuthenticated", "message": "secret"}"#;
    assert_eq!(code(body).as_deref(), Some("NotAuthenticated"));
    for body in [
        &b"{\"code\": \"a b\"}"[..],
        b"{\"code\": 1}",
        b"",
        b"[]",
        b"{\"code\": \"\"}",
    ] {
        assert_eq!(code(body), None);
    }
}
