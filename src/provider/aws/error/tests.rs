use super::*;
use crate::provider::{bound::Tie, wire::request_id};
use crate::seal::FaultKind;

fn asked(operation: Operation, context: bool) -> Asked<'static> {
    Asked {
        operation,
        of: "alias/bao",
        region: "eu-west-1",
        tie: if context { Tie::Users } else { Tie::None },
    }
}

fn answered(code: &str, status: u16) -> Failure {
    Failure::Answer(Answer {
        code: Some(code.into()),
        status: Some(status),
        request_id: Some("id-1".into()),
        ..Answer::default()
    })
}

#[test]
fn every_code_has_its_reason() {
    use FaultKind::{Denied, Invalid, Throttled, Transient};
    use Operation::{AssumeRole, AssumeRoleWithWebIdentity, Decrypt, DescribeKey, Encrypt};
    for (operation, code, status, reason, kind) in [
        (
            Decrypt,
            "AccessDeniedException",
            400,
            Reason::AccessDenied,
            Denied,
        ),
        (
            Encrypt,
            "AccessDeniedException",
            400,
            Reason::AccessDenied,
            Denied,
        ),
        (DescribeKey, "AccessDenied", 403, Reason::AccessDenied, Denied),
        (Decrypt, "NotFoundException", 400, Reason::KeyNotFound, Denied),
        (Decrypt, "InvalidArnException", 400, Reason::KeyNotFound, Invalid),
        (Decrypt, "DisabledException", 409, Reason::KeyDisabled, Denied),
        (
            Decrypt,
            "KMSInvalidStateException",
            409,
            Reason::KeyUnusable,
            Denied,
        ),
        (
            Decrypt,
            "InvalidKeyUsageException",
            400,
            Reason::KeyUnusable,
            Denied,
        ),
        (
            Decrypt,
            "IncorrectKeyException",
            400,
            Reason::KeyNotAllowed,
            Denied,
        ),
        (
            Decrypt,
            "InvalidCiphertextException",
            400,
            Reason::CiphertextInvalid,
            Invalid,
        ),
        (
            Decrypt,
            "ValidationException",
            400,
            Reason::CiphertextInvalid,
            Invalid,
        ),
        (Decrypt, "ThrottlingException", 400, Reason::Throttled, Throttled),
        (
            Decrypt,
            "LimitExceededException",
            400,
            Reason::Throttled,
            Throttled,
        ),
        (
            Decrypt,
            "TooManyRequestsException",
            429,
            Reason::Throttled,
            Throttled,
        ),
        (Decrypt, "Whatever", 429, Reason::Throttled, Throttled),
        (
            Decrypt,
            "DependencyTimeoutException",
            503,
            Reason::KmsUnavailable,
            Transient,
        ),
        (
            Decrypt,
            "KMSInternalException",
            500,
            Reason::KmsUnavailable,
            Transient,
        ),
        (
            Decrypt,
            "KeyUnavailableException",
            500,
            Reason::KmsUnavailable,
            Transient,
        ),
        (Decrypt, "Whatever", 500, Reason::KmsUnavailable, Transient),
        (Decrypt, "Whatever", 400, Reason::KmsUnavailable, Transient),
        (Decrypt, "Whatever", 307, Reason::KmsUnavailable, Denied),
        (Decrypt, "Whatever", 403, Reason::AccessDenied, Denied),
        (
            Decrypt,
            "UnrecognizedClientException",
            400,
            Reason::CredentialsRejected,
            Denied,
        ),
        (
            Decrypt,
            "InvalidClientTokenId",
            403,
            Reason::CredentialsRejected,
            Denied,
        ),
        (
            Decrypt,
            "ExpiredTokenException",
            400,
            Reason::CredentialsExpired,
            Denied,
        ),
        (
            Decrypt,
            "SignatureDoesNotMatch",
            403,
            Reason::CredentialsRejected,
            Denied,
        ),
        (AssumeRole, "AccessDenied", 403, Reason::AssumeRoleDenied, Denied),
        (
            AssumeRole,
            "ExpiredToken",
            403,
            Reason::CredentialsExpired,
            Denied,
        ),
        (
            AssumeRole,
            "InvalidClientTokenId",
            403,
            Reason::CredentialsRejected,
            Denied,
        ),
        (AssumeRole, "Throttling", 400, Reason::Throttled, Throttled),
        (
            AssumeRole,
            "InternalFailure",
            500,
            Reason::KmsUnavailable,
            Transient,
        ),
        (AssumeRole, "Whatever", 403, Reason::AssumeRoleDenied, Denied),
        (
            AssumeRoleWithWebIdentity,
            "AccessDenied",
            403,
            Reason::WebIdentityRejected,
            Denied,
        ),
        (
            AssumeRoleWithWebIdentity,
            "InvalidIdentityToken",
            400,
            Reason::WebIdentityRejected,
            Denied,
        ),
        (
            AssumeRoleWithWebIdentity,
            "ExpiredTokenException",
            400,
            Reason::WebIdentityRejected,
            Denied,
        ),
        (
            AssumeRoleWithWebIdentity,
            "IDPRejectedClaim",
            403,
            Reason::WebIdentityRejected,
            Denied,
        ),
        (
            AssumeRoleWithWebIdentity,
            "IDPCommunicationError",
            400,
            Reason::WebIdentityRejected,
            Transient,
        ),
        (
            AssumeRoleWithWebIdentity,
            "InternalFailure",
            500,
            Reason::KmsUnavailable,
            Transient,
        ),
    ] {
        let fault = fault(&asked(operation, false), answered(code, status));
        assert_eq!((fault.reason, fault.kind), (reason, kind), "{operation:?} {code}");
        assert!(
            fault.message.ends_with(&format!("({code}, status {status})")),
            "{fault}"
        );
    }
}

#[test]
fn a_refusal_names_the_missing_action_and_the_key() {
    for operation in [Operation::Decrypt, Operation::Encrypt, Operation::DescribeKey] {
        let fault = fault(&asked(operation, false), answered("AccessDeniedException", 400));
        assert!(
            fault
                .message
                .contains(&format!("allow kms:{}", operation.as_str())),
            "{fault}"
        );
        assert!(fault.message.contains("alias/bao") && fault.message.contains("key's policy"));
    }
}

#[test]
fn a_context_that_does_not_fit_is_a_context_mismatch() {
    let fault = fault(
        &asked(Operation::Decrypt, true),
        answered("InvalidCiphertextException", 400),
    );
    assert_eq!(fault.reason, Reason::ContextMismatch);
    assert!(fault.message.contains("or its bytes were changed"));
}

#[test]
fn the_clock_is_blamed_only_with_evidence() {
    for (skew, reason) in [
        (None, Reason::CredentialsRejected),
        (Some(10), Reason::CredentialsRejected),
        (Some(301), Reason::ClockSkew),
    ] {
        let answer = Answer {
            code: Some("InvalidSignatureException".into()),
            skew: skew.map(Duration::from_secs),
            ..Answer::default()
        };
        let fault = fault(&asked(Operation::Decrypt, false), Failure::Answer(answer));
        assert_eq!(fault.reason, reason);
    }
}

#[test]
fn only_what_has_the_form_of_a_code_or_id_passes() {
    for (text, kept) in [
        ("NotFoundException", Some("NotFoundException")),
        ("com.amazonaws.kms#NotFoundException", Some("NotFoundException")),
        (
            "NotFoundException:http://internal.amazon.com/",
            Some("NotFoundException"),
        ),
        ("Not Found", None),
        ("hunter2", None),
        ("", None),
        (&"A".repeat(65), None),
    ] {
        assert_eq!(code(text).as_deref(), kept, "{text}");
    }
    assert_eq!(request_id("a1-B2/c").as_deref(), Some("a1-B2/c"));
    for text in ["", "a b", "a\nb", "é", &"a".repeat(129)] {
        assert_eq!(request_id(text), None);
    }
    assert_eq!(
        code_in_xml(b"<a><Code> AccessDenied </Code></a>").as_deref(),
        Some("AccessDenied")
    );
    assert_eq!(code_in_xml(b"<a><Code>to ken</Code></a>"), None);
    assert_eq!(code_in_xml(b"<Code>A"), None);
    assert_eq!(code_in_json(br#"{"__type":"x#Y"}"#).as_deref(), Some("Y"));
    assert_eq!(code_in_json(b"[]"), None);
}
