use proptest::prelude::*;
use rstest::rstest;

use super::*;

const WHOLE: &str = "\
# made by the console
[DEFAULT]
user=ocid1.user.oc1..aaaa
fingerprint=d2:ef:2a:c3
tenancy = ocid1.tenancy.oc1..bbbb
region = eu-frankfurt-1
key_file=~/.oci/key.pem
pass_phrase = a=b=c # d

[OTHER]
; another region, the rest is inherited
region: us-phoenix-1
security_token_file=token
user=
";

#[test]
fn the_default_profile_is_read_when_none_is_named() {
    let read = profile(WHOLE, None).unwrap();
    assert_eq!(read.user.as_deref(), Some("ocid1.user.oc1..aaaa"));
    assert_eq!(
        read.fingerprint.as_deref(),
        Some("d2:ef:2a:c3"),
        "a colon after the sign is the value's"
    );
    assert_eq!(read.tenancy.as_deref(), Some("ocid1.tenancy.oc1..bbbb"));
    assert_eq!(read.region.as_deref(), Some("eu-frankfurt-1"));
    assert_eq!(
        read.key_file.as_deref(),
        Some("~/.oci/key.pem"),
        "no home folder is looked up"
    );
    assert_eq!(read.pass_phrase.as_ref().unwrap().as_str(), "a=b=c # d");
    assert_eq!(read.security_token_file, None);
    assert_eq!(profile(WHOLE, Some(DEFAULT)), Ok(read));
}

#[test]
fn another_profile_inherits_what_it_does_not_say_itself() {
    let read = profile(WHOLE, Some("OTHER")).unwrap();
    assert_eq!(read.region.as_deref(), Some("us-phoenix-1"));
    assert_eq!(read.security_token_file.as_deref(), Some("token"));
    assert_eq!(read.tenancy.as_deref(), Some("ocid1.tenancy.oc1..bbbb"));
    assert_eq!(
        read.user, None,
        "an empty value is a value: it hides the inherited one"
    );
}

#[rstest]
#[case::crlf(&WHOLE.replace('\n', "\r\n"))]
#[case::byte_order_mark(&format!("\u{feff}{WHOLE}"))]
#[case::indented(&WHOLE.replace('\n', "\n   "))]
#[case::capitals(&WHOLE.replace("region", "Region").replace("pass_phrase", "PASS_PHRASE"))]
#[case::alias(&WHOLE.replace("pass_phrase", "passphrase"))]
#[case::blanks_in_brackets(&WHOLE.replace("[OTHER]", "  [ OTHER ]  # mine"))]
fn a_text_is_read_however_it_was_written(#[case] text: &str) {
    for name in [None, Some("OTHER")] {
        assert_eq!(profile(text, name), profile(WHOLE, name));
    }
}

#[rstest]
#[case("[DEFAULT]\nregion=a\nREGION=b\n[X]\n", "b")]
#[case("[DEFAULT]\nregion=a\n[X]\n[DEFAULT]\nregion=b\n", "b")]
#[case("[X]\nregion=x\n[DEFAULT]\nregion=a\n", "x")]
fn the_last_of_the_same_keys_wins_and_ones_own_before_all(#[case] text: &str, #[case] region: &str) {
    assert_eq!(profile(text, Some("X")).unwrap().region.as_deref(), Some(region));
}

#[test]
fn the_two_names_of_the_pass_phrase_are_one_key() {
    let read = |text: &str| profile(text, Some("X")).unwrap().pass_phrase.unwrap();
    assert_eq!(read("[X]\npass_phrase=a\npassphrase=b\n").as_str(), "b");
    assert_eq!(read("[X]\npassphrase=b\npass_phrase=a\n").as_str(), "a");
    assert_eq!(
        read("[DEFAULT]\npass_phrase=a\n[X]\npassphrase=b\n").as_str(),
        "b"
    );
}

#[test]
fn debug_output_has_no_pass_phrase() {
    let shown = format!("{:?}", profile(WHOLE, None).unwrap());
    assert!(
        shown.contains("[redacted]") && !shown.contains("a=b=c"),
        "{shown}"
    );
}

#[rstest]
#[case::empty("", ConfigError::Empty)]
#[case::comments_only("# [DEFAULT]\n", ConfigError::Empty)]
#[case::no_profile("region=a\n", ConfigError::Empty)]
#[case::a_key_instead("-----BEGIN PRIVATE KEY-----\nMIIE\n", ConfigError::Empty)]
#[case::no_sign("[DEFAULT]\nregion\n", ConfigError::Line(2))]
#[case::open_bracket("[DEFAULT]\n\n[OTHER\nregion=a\n", ConfigError::Line(3))]
#[case::no_name("[DEFAULT]\n[ ]\n", ConfigError::Line(2))]
#[case::a_key_within("[DEFAULT]\nregion=a\n-----BEGIN PRIVATE KEY-----\n", ConfigError::Line(3))]
fn a_text_that_is_no_configuration_is_told_so(#[case] text: &str, #[case] expected: ConfigError) {
    assert_eq!(profile(text, None).unwrap_err(), expected);
}

#[test]
fn a_second_line_of_a_value_is_skipped() {
    let text = "[DEFAULT]\nkey_content=-----BEGIN PRIVATE KEY-----\n  MIIE\n\tAAAA\nregion=a\n";
    assert_eq!(profile(text, None).unwrap().region.as_deref(), Some("a"));
}

#[test]
fn a_missing_profile_is_told_with_the_names_that_are_there() {
    let told = profile(WHOLE, Some("other")).unwrap_err().to_string();
    assert_eq!(
        told,
        "the OCI configuration has no profile other; name one that it has (DEFAULT, OTHER), or add it"
    );
    let many: Vec<String> = (0..12).map(|n| format!("[P{n}]\n[P{n}]\n")).collect();
    let told = profile(&many.concat(), None).unwrap_err().to_string();
    assert!(
        told.contains("profile DEFAULT;") && told.contains("P8, P9, and 2 more)"),
        "{told}"
    );
    let told = profile("[\u{1b}[31m]\n", Some("a\nb")).unwrap_err().to_string();
    assert!(
        told.contains("profile a?b;") && told.contains("(?[31m)"),
        "{told}"
    );
}

#[test]
fn a_large_text_is_refused_and_the_largest_costs_little() {
    let fits = format!("[DEFAULT]\n{}", "[A]\n".repeat((MAX_BYTES - 10) / 4));
    assert!(profile(&fits, None).is_ok());
    let names: Vec<String> = (0..9000).map(|n| format!("[{n}]\n")).collect();
    assert!(profile(&names.concat(), None).is_err());
    assert_eq!(
        profile(&" ".repeat(MAX_BYTES + 1), None),
        Err(ConfigError::TooLarge)
    );
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".*", lines in prop::collection::vec("\\[?[A-Za-z_]{0,9}[]=: #;\u{e4}]{0,3}[a-z]{0,3}", 0..20)) {
        let _ = profile(&text, None);
        for text in [lines.join("\n"), format!("[A]\n{}", lines.join("\r\n"))] {
            let _ = profile(&text, Some("A"));
        }
    }
}
