//! `autounseal wrap`: a key in, the `wrapped:` entries to paste out.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Done, Failure, Output,
    destination::destinations,
    manifest::{self, API_VERSION, Object},
    offline::Caller,
    output, schema, sending,
};
use crate::{
    api::{self, KIND, SealConfig, WrappedFormat},
    seal::{
        KeyBytes,
        check_value::{Binding, check_value},
        consumer_id::GUESSABLE_BELOW,
        model::{self, BOUND_NAMESPACE, Seal},
    },
    yaml,
};

/// Most bytes that AWS KMS and OCI KMS encrypt directly.
const MAX_KMS: usize = 4096;
/// Most bytes of a key in a blob: with its frame and as base64 it still fits into a manifest.
const MAX_BLOB: usize = 60 * 1024;

/// Wrap a key under the seals of a manifest, with your own cloud identity
///
/// Reads a key from standard input or a file, exactly as its bytes are, has the KMS wrap it, reads it back, and prints
/// the entries for `wrapped:` and the check value that pins the key. The manifest needs nothing but `spec.seals`.
///
/// The key is sent only to KMS keys that you name yourself: with --to, or by confirming at the terminal. What the file
/// says about endpoints, roles and credentials is not used unless you pass --trust-file; your own identity is, as the
/// cloud's own command line finds it (AWS: environment, shared configuration, instance role; OCI: ~/.oci/config, else
/// OCI_CONFIG_FILE, with OCI_CLI_PROFILE, else resource or instance principal). The endpoints of an OCI vault are used, but
/// without --trust-file only those of Oracle itself, in the realm and region of the key.
///
/// With --format blobinfo the KMS sees only a data key; with --format kms it sees the key itself.
///
/// Examples:
///
///   head -c 32 /dev/urandom | autounseal wrap -f seal.yaml --key master \
///       --to arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab
///   autounseal wrap -f seal.yaml --key master --in master.key --format kms \
///       --context autounseal.dev/bound-namespace=billing
///
///   autounseal wrap -f seal.yaml --key master --in master.key --to ocid1.key.oc1.eu-frankfurt-1.…
///
/// Exit codes: 0 wrapped and read back, 1 it could not be, 2 misuse (no destination named, no key given).
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct WrapArgs {
    /// The file with the SealConfig, YAML or JSON, at most 1 MiB
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Name of the key, as spec.keys has it or will have it
    #[arg(long, value_name = "NAME")]
    key: String,
    /// Only this seal. Default: every seal, or with --to those that are named by it
    #[arg(long, value_name = "NAME")]
    seal: Option<String>,
    /// The KMS key that the key may be sent to, as an ARN (key or alias) or OCID. May be repeated
    #[arg(long, value_name = "ARN|OCID")]
    to: Vec<String>,
    /// How the copy is packed: blobinfo as Vault, OpenBao and Boundary do it, or the KMS's own ciphertext
    #[arg(long, value_enum, default_value_t = PackedAs::Blobinfo)]
    format: PackedAs,
    /// AWS encryption context or OCI associatedData, only with --format kms. May be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    context: Vec<String>,
    /// Read the key from this file instead of standard input
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Which SealConfig, when the file holds several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The namespace, when the manifest names none
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Use the endpoints and roles that the file names
    #[arg(long)]
    trust_file: bool,
    /// How to print the entries; text is YAML
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// [`WrappedFormat`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PackedAs {
    Blobinfo,
    Kms,
}

impl PackedAs {
    const fn format(self) -> WrappedFormat {
        match self {
            PackedAs::Blobinfo => WrappedFormat::BlobInfo,
            PackedAs::Kms => WrappedFormat::Kms,
        }
    }

    const fn most(self) -> usize {
        match self {
            PackedAs::Blobinfo => MAX_BLOB,
            PackedAs::Kms => MAX_KMS,
        }
    }
}

type Context = BTreeMap<String, String>;

pub(super) async fn run(args: &WrapArgs) -> Done {
    if args.file == Path::new("-") && args.input.is_none() {
        return Err(Failure::Misuse(
            "standard input carries the key, so the manifest must be a file; or give the key with --in FILE"
                .to_owned(),
        ));
    }
    let (object, _) = manifest::one_seal_config(&args.file, args.name.as_deref(), args.namespace.as_deref())?;
    let mut seals = seals_of(&object)?;
    // Nothing new goes under a disabled seal, unless that very one is asked for; a seal without use Wrap opens nothing.
    seals.retain(|seal| seal.wraps && (!seal.disabled || args.seal.as_ref() == Some(&seal.name)));
    check_name(&args.key)?;
    let context = context(&args.context, args.format, object.namespace())?;
    let ways = destinations(&seals, args.seal.as_deref(), &args.to, args.trust_file)?;
    sending::permitted(&format!("key {:?}", args.key), &ways, !args.to.is_empty())?;
    let key = read_key(args.input.as_deref(), args.format.most())?;
    if key.expose().last() == Some(&b'\n') {
        output::note(
            "the key ends with a line end, which is part of it now; if that is not meant, make it with printf or head -c",
        );
    }
    let caller = Caller::new(
        object.namespace(),
        object.name(),
        ways.iter().map(|way| &way.seal),
        args.trust_file,
    );
    let mut copies = Vec::new();
    for way in &ways {
        let part = format!("seal {:?}", way.seal.name);
        let format = args.format.format();
        let wrapped = sending::wrap(&caller, way, &part, &key, format, &context).await?;
        copies.push(sending::entry(&way.seal.name, format, &context, &wrapped));
    }
    print(args, &object, &copies, pin(&key, &object, &args.key))
}

/// The seals of a manifest that may hold nothing else.
fn seals_of(object: &Object) -> Result<Vec<Seal>, Failure> {
    let schema = schema::of_kind(&api::crds()[0]);
    let schema = schema
        .pointer("/properties/spec/properties/seals")
        .cloned()
        .unwrap_or_default();
    let seals = &object.value["spec"]["seals"];
    let problems = schema::check(&schema, seals);
    if !problems.is_empty() {
        let list: Vec<_> = problems
            .iter()
            .map(|problem| {
                let within = problem.path.starts_with('[');
                format!("spec.seals{}{problem}", if within { "" } else { ": " })
            })
            .collect();
        return Err(Failure::No(format!("{}: {}", object.place, list.join("; "))));
    }
    // Name and namespace do not matter to the seals, and need not be there.
    let alone: SealConfig = serde_json::from_value(json!({
        "apiVersion": API_VERSION, "kind": KIND,
        "metadata": {"name": "x", "namespace": "x"}, "spec": {"seals": seals},
    }))
    .map_err(|error| Failure::No(format!("{}: {error}", object.place)))?;
    Ok(model::parse(&alone)?.seals)
}

/// The characters of `spec.keys[].name`.
pub(super) fn check_name(key: &str) -> Result<(), Failure> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = (1..=63).contains(&key.len())
        && key.starts_with(inner)
        && key.ends_with(inner)
        && key.chars().all(|c| inner(c) || c == '-');
    if fits {
        Ok(())
    } else {
        Err(Failure::Misuse(
            "--key takes a name of small letters, digits and hyphens, at most 63 of them".to_owned(),
        ))
    }
}

fn context(pairs: &[String], format: PackedAs, namespace: Option<&str>) -> Result<Context, Failure> {
    let misuse = |message: String| Err(Failure::Misuse(message));
    if !pairs.is_empty() && format != PackedAs::Kms {
        return misuse(
            "--context goes only with --format kms; go-kms-wrapping's blobs never carry one".into(),
        );
    }
    if pairs.len() > 8 {
        return misuse("at most 8 --context are taken".into());
    }
    let mut context = Context::new();
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return misuse("--context takes NAME=VALUE".into());
        };
        let ours = name.starts_with("autounseal.dev/");
        if ours && (name != BOUND_NAMESPACE || namespace.is_some_and(|own| own != value)) {
            return misuse(format!(
                "context names under autounseal.dev/ are the operator's own, but for {BOUND_NAMESPACE} with the \
                 namespace of the SealConfig"
            ));
        }
        if context.insert(name.to_owned(), value.to_owned()).is_some() {
            return misuse(format!("two --context are named {name:?}; leave one out"));
        }
    }
    Ok(context)
}

/// The key, from a file or standard input.
fn read_key(input: Option<&Path>, most: usize) -> Result<KeyBytes, Failure> {
    if let Some(path) = input {
        let what = path.display();
        let file = File::open(path).map_err(|error| cannot_read(&what, &error))?;
        return read_bytes(file, most, &what);
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::Misuse(
            "standard input is a terminal, which would show the key: pipe the key in, or name a file with --in".to_owned(),
        ));
    }
    // Not `Stdin` itself: its buffer is nobody's to wipe.
    let descriptor = std::os::fd::AsFd::as_fd(&stdin)
        .try_clone_to_owned()
        .map_err(|error| cannot_read(&"standard input", &error))?;
    read_bytes(File::from(descriptor), most, &"standard input")
}

fn cannot_read(what: &dyn Display, error: &io::Error) -> Failure {
    Failure::Misuse(format!("cannot read {what}: {error}"))
}

fn read_bytes(mut reader: impl Read, most: usize, what: &dyn Display) -> Result<KeyBytes, Failure> {
    // One byte more than allowed, so that a longer key is seen; never grown, so that no copy is left behind.
    let mut buffer = Zeroizing::new(vec![0; most + 1]);
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot_read(what, &error)),
        }
    }
    if length == 0 {
        return Err(Failure::Misuse(format!("{what} is empty; it must hold the key")));
    }
    if length > most {
        return Err(Failure::Misuse(format!(
            "{what} holds more than {most} bytes, the most that this format takes"
        )));
    }
    Ok(KeyBytes::new(buffer[..length].to_vec()))
}

/// The check value, or why there is none.
fn pin(key: &KeyBytes, object: &Object, name: &str) -> Result<String, String> {
    let (Some(namespace), Some(config)) = (object.namespace(), object.name()) else {
        return Err(
            "no checkValue: it is bound to the namespace and name of the SealConfig, and the manifest lacks one of them"
                .to_owned(),
        );
    };
    let binding = Binding {
        kind: KIND,
        namespace,
        name: config,
        key: name,
    };
    check_value(key, &binding).ok_or_else(|| {
        format!(
            "no checkValue: the key is shorter than {GUESSABLE_BELOW} bytes, and whoever reads the value could find the key \
             by guessing"
        )
    })
}

fn print(args: &WrapArgs, object: &Object, copies: &[Value], pin: Result<String, String>) -> Done {
    let mut report = json!({"wrapped": copies});
    let mut head = match object.name() {
        Some(name) => format!("# Paste under key {} of SealConfig {name}:\n", args.key),
        None => format!("# Paste under key {} of spec.keys:\n", args.key),
    };
    match pin {
        Ok(value) => report["checkValue"] = value.into(),
        Err(why) if args.output == Output::Json => output::note(&why),
        Err(why) => {
            // Writing to a String cannot fail.
            let _ = writeln!(head, "# {why}");
        }
    }
    match args.output {
        Output::Json => output::json(&report),
        Output::Text => {
            let body = yaml::print(&report).map_err(|error| Failure::No(error.to_string()))?;
            output::report(&format!("{head}{body}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        Object {
            place: "seal.yaml".to_owned(),
            value,
        }
    }

    #[test]
    fn only_the_seals_of_a_manifest_are_needed() {
        let seals = seals_of(&object(json!({"spec": {
            "seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/a"}}], "keys": "not looked at",
        }})))
        .unwrap();
        assert_eq!(seals[0].name, "aws");
        for wrong in [
            json!({}),
            json!({"spec": {"seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/a", "endpont": "x"}}]}}),
            json!({"spec": {"seals": [{"name": "aws"}]}}),
        ] {
            assert!(matches!(seals_of(&object(wrong)), Err(Failure::No(_))));
        }
    }

    #[test]
    fn a_key_is_read_as_its_bytes_are_and_within_bounds() {
        let key = read_bytes(&b"a\0b\n"[..], 4, &"x").unwrap();
        assert_eq!(key.expose(), b"a\0b\n");
        assert!(read_bytes(&b"12345"[..], 4, &"x").is_err());
        assert!(read_bytes(&b""[..], 4, &"x").is_err());
    }

    #[test]
    fn a_context_is_of_kms_and_not_ours() {
        let read = |pairs: &[&str], format| {
            let pairs: Vec<_> = pairs.iter().map(|&pair| pair.to_owned()).collect();
            context(&pairs, format, Some("billing"))
        };
        let bound = format!("{BOUND_NAMESPACE}=billing");
        let good = read(&["a=b=c", "d=", &bound], PackedAs::Kms).unwrap();
        assert_eq!(good["a"], "b=c");
        assert_eq!(good["d"], "");
        assert!(read(&["a=b"], PackedAs::Blobinfo).is_err());
        for wrong in [
            vec!["a"],
            vec!["=b"],
            vec!["a=1", "a=2"],
            vec!["autounseal.dev/version=1"],
            vec!["autounseal.dev/bound-namespace=other"],
            vec!["x=y"; 9],
        ] {
            assert!(read(&wrong, PackedAs::Kms).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_pin_needs_a_place_and_a_key_that_nobody_guesses() {
        let key = KeyBytes::new(vec![7; 32]);
        let placed = object(json!({"metadata": {"name": "a", "namespace": "b"}}));
        assert_eq!(pin(&key, &placed, "root").unwrap().len(), 64);
        assert!(pin(&key, &object(json!({})), "root").is_err());
        let short = KeyBytes::new(vec![7; 15]);
        assert!(pin(&short, &placed, "root").unwrap_err().contains("guessing"));
    }

    #[test]
    fn names_of_keys_are_those_of_the_schema() {
        for good in ["a", "root-key", "0"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for wrong in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
