//! `autounseal unwrap`: the break-glass way, from a manifest and the caller's own cloud identity to the key.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    Done, Failure, check,
    manifest::{self, KIND, Object},
    offline::{self, Caller},
    output,
    schema::Problem,
};
use crate::{
    api::Reason,
    seal::{
        Ciphertext, Fault, KeyBytes,
        check_value::{Binding, check_value},
        model::{Copy, Key, Model, Source, SourceKind, SourceRef, unarmor},
    },
};

/// Open a key of a manifest, with your own cloud identity: the way when the cluster is gone
///
/// Tries the copies of the key in the order of their seals' priority and writes the bytes of the first that opens to
/// standard output, exactly as they are. A copy in a Secret or ConfigMap is found when that object is in the same
/// file. What opened the copy is checked as the operator would: the KMS key must be the seal's, and the key must fit
/// checkValue where there is one.
///
/// What the file says about endpoints, roles and credentials is not used unless you pass --trust-file; your own identity
/// is. It needs kms:Decrypt on an AWS key, `use keys` on an OCI key. The endpoints of an OCI vault are used, but without
/// --trust-file only those of Oracle itself, in the realm and region of the key.
///
/// Examples:
///
///   autounseal unwrap -f seal.yaml --key master --out-file master.key
///   autounseal unwrap -f seal.yaml --key master | sha256sum
///
/// Exit codes: 0 opened, 1 no copy could be opened or the manifest is wrong, 2 misuse.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct UnwrapArgs {
    /// The file with the SealConfig, YAML or JSON, at most 1 MiB; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Name of the key
    #[arg(long, value_name = "NAME")]
    key: String,
    /// Only the copy of this seal
    #[arg(long, value_name = "NAME")]
    seal: Option<String>,
    /// Write the key into this file, which must not exist; only you may read it
    #[arg(long, value_name = "FILE")]
    out_file: Option<PathBuf>,
    /// Which SealConfig, when the file holds several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The namespace, when the manifest names none
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Use the endpoints and roles that the file names
    #[arg(long)]
    trust_file: bool,
    /// Write the key even to a terminal
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(args: &UnwrapArgs) -> Done {
    if args.out_file.is_none() && !args.force && io::stdout().is_terminal() {
        return Err(Failure::Misuse(
            "standard output is a terminal, which would show the key: name a file with --out-file, or pass --force"
                .to_owned(),
        ));
    }
    let (object, others) =
        manifest::one_seal_config(&args.file, args.name.as_deref(), args.namespace.as_deref())?;
    let model = check::check(&object).map_err(|problems| wrong(&object, &problems))?;
    let key = model.keys.iter().find(|key| key.name == args.key);
    let key = key.ok_or_else(|| {
        let names: Vec<_> = model.keys.iter().map(|key| key.name.as_str()).collect();
        Failure::Misuse(format!(
            "the SealConfig has no key {:?}; it has {}",
            args.key,
            names.join(", ")
        ))
    })?;
    // Before anything is opened: a file that is in the way is better told now.
    let mut file = args.out_file.as_deref().map(OutFile::create).transpose()?;
    let bytes = open(args, &model, key, &others, &object).await?;
    match (&mut file, &args.out_file) {
        (Some(file), Some(path)) => {
            file.keep(bytes.expose())
                .map_err(|error| Failure::No(format!("cannot write {}: {error}", path.display())))?;
            output::note(&format!("written to {}", path.display()));
        }
        _ => output::bytes(bytes.expose())
            .map_err(|error| Failure::No(format!("cannot write to standard output: {error}")))?,
    }
    Ok(())
}

pub(super) fn wrong(object: &Object, problems: &[Problem]) -> Failure {
    let list: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Failure::No(format!("{}: {}", object.place, list.join("; ")))
}

/// The first copy that opens and fits.
async fn open(
    args: &UnwrapArgs,
    model: &Model,
    key: &Key,
    others: &[Object],
    object: &Object,
) -> Result<KeyBytes, Failure> {
    let mut tried = false;
    for copy in &key.copies {
        if args.seal.as_ref().is_some_and(|only| *only != copy.seal) {
            continue;
        }
        let Some(seal) = model.seal(&copy.seal) else {
            continue;
        };
        let part = format!("seal {:?}", seal.name);
        let wrapped = match wrapped(copy, others, &model.id.namespace) {
            Ok(wrapped) => wrapped,
            Err(why) => {
                output::note(&format!("{part}: {why}"));
                continue;
            }
        };
        tried = true;
        let way = offline::with_own_identity(seal, args.trust_file);
        for note in &way.notes {
            output::note(note);
        }
        let caller = Caller::new(object, std::iter::once(&way.seal), args.trust_file);
        let opened = caller
            .unwrap(&way.seal, &wrapped, copy.format, &copy.context)
            .await
            .and_then(|opened| {
                fits(model, key, &opened.key)?;
                Ok(opened)
            });
        match opened {
            Ok(opened) => {
                output::note(&format!("{part}: opened by {}", opened.key_id));
                return Ok(opened.key);
            }
            Err(fault) => output::note(&fault.of(&part).to_string()),
        }
    }
    Err(Failure::No(if tried {
        format!("no copy of key {:?} could be opened", key.name)
    } else {
        format!(
            "there was no copy of key {:?} to try; put the objects that hold the copies into the file, or name another \
             --seal",
            key.name
        )
    }))
}

/// What `checkValue` says of the key.
fn fits(model: &Model, key: &Key, bytes: &KeyBytes) -> Result<(), Fault> {
    let Some(pinned) = &key.check_value else {
        return Ok(());
    };
    let binding = Binding {
        kind: KIND,
        namespace: &model.id.namespace,
        name: &model.id.name,
        key: &key.name,
    };
    if check_value(bytes, &binding).as_ref() == Some(pinned) {
        Ok(())
    } else {
        Err(Fault::invalid(
            Reason::CheckValueDiffers,
            "the copy holds another key than checkValue pins; it is not written",
        ))
    }
}

/// The bytes of a copy, from the manifest or from an object beside it.
pub(super) fn wrapped(copy: &Copy, others: &[Object], namespace: &str) -> Result<Ciphertext, String> {
    match &copy.source {
        Source::Inline(wrapped) => Ok(wrapped.clone()),
        Source::Entry(entry) => {
            let holder = others.iter().find(|object| {
                object.kind() == entry.kind.to_string()
                    && object.name() == Some(entry.name.as_str())
                    && object.namespace().is_none_or(|own| own == namespace)
            });
            let holder = holder.ok_or_else(|| {
                format!("the copy lies in {entry}, which is not in the file; add that object to the file to try it")
            })?;
            entry_bytes(&holder.value, entry)
                .ok_or_else(|| format!("{entry} has no readable entry {:?}", entry.key))
        }
    }
}

/// An entry as the apiserver would give it: `stringData` wins in a Secret, `binaryData` and `data` differ in a ConfigMap.
fn entry_bytes(object: &Value, entry: &SourceRef) -> Option<Ciphertext> {
    let text = |field: &str| object[field][&entry.key].as_str();
    let bytes = match entry.kind {
        SourceKind::Secret => match text("stringData") {
            Some(plain) => plain.as_bytes().to_vec(),
            None => base64(text("data")?)?,
        },
        SourceKind::ConfigMap => match text("data") {
            Some(plain) => plain.as_bytes().to_vec(),
            None => base64(text("binaryData")?)?,
        },
    };
    unarmor(&bytes, entry.armor)
}

/// How manifests carry bytes. The apiserver reads it with line ends in it, too.
fn base64(text: &str) -> Option<Vec<u8>> {
    let packed: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    data_encoding::BASE64.decode(&packed).ok()
}

/// A new file that only its owner may read, and that goes away again unless it is kept.
#[derive(Debug)]
struct OutFile<'p> {
    path: &'p Path,
    file: File,
    kept: bool,
}

impl<'p> OutFile<'p> {
    fn create(path: &'p Path) -> Result<Self, Failure> {
        // O_CREAT with O_EXCL: an existing file is never written, and a symbolic link is never followed (POSIX open()).
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| {
                Failure::Misuse(match error.kind() {
                    io::ErrorKind::AlreadyExists => format!(
                        "{} exists and is not overwritten; name another file",
                        path.display()
                    ),
                    _ => format!("cannot create {}: {error}", path.display()),
                })
            })?;
        Ok(Self {
            path,
            file,
            kept: false,
        })
    }

    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_all()?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for OutFile<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // An empty or half-written file would be taken for the key.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::api::Armor;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("autounseal-out-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn the_file_is_new_private_and_complete() {
        let path = scratch("new");
        OutFile::create(&path).unwrap().keep(b"key").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"key");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(OutFile::create(&path), Err(Failure::Misuse(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"key", "an existing file stays");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_link_is_never_followed_and_a_failure_leaves_nothing() {
        let (link, aim) = (scratch("link"), scratch("aim"));
        std::os::unix::fs::symlink(&aim, &link).unwrap();
        assert!(matches!(OutFile::create(&link), Err(Failure::Misuse(_))));
        assert!(!aim.exists());
        std::fs::remove_file(&link).unwrap();
        drop(OutFile::create(&aim).unwrap());
        assert!(!aim.exists());
    }

    fn entry(kind: SourceKind, armor: Armor) -> SourceRef {
        SourceRef {
            kind,
            name: "s".into(),
            key: "k".into(),
            armor,
        }
    }

    #[test]
    fn a_copy_is_found_in_an_object_of_the_same_file() {
        let copy = Copy {
            seal: "aws".into(),
            format: crate::api::WrappedFormat::Kms,
            context: std::collections::BTreeMap::new(),
            source: Source::Entry(entry(SourceKind::Secret, Armor::None)),
        };
        let beside = |namespace: &str| Object {
            place: String::new(),
            value: json!({"kind": "Secret", "metadata": {"name": "s", "namespace": namespace}, "data": {"k": "eA=="}}),
        };
        assert_eq!(
            wrapped(&copy, &[beside("n")], "n"),
            Ok(Ciphertext::new(b"x".to_vec()))
        );
        assert!(wrapped(&copy, &[beside("other")], "n").is_err());
        assert!(wrapped(&copy, &[], "n").unwrap_err().contains("not in the file"));
    }

    #[test]
    fn entries_read_as_the_apiserver_gives_them() {
        let read = |object: &Value, kind, armor| {
            entry_bytes(object, &entry(kind, armor)).map(|c| c.bytes().to_vec())
        };
        let secret = json!({"data": {"k": "ZUE9PQ=="}});
        assert_eq!(read(&secret, SourceKind::Secret, Armor::None).unwrap(), b"eA==");
        assert_eq!(read(&secret, SourceKind::Secret, Armor::Auto).unwrap(), b"x");
        let map = json!({"data": {"k": "eA=\n="}});
        assert_eq!(read(&map, SourceKind::ConfigMap, Armor::Base64).unwrap(), b"x");
        assert_eq!(
            read(&json!({"data": {"k": "?"}}), SourceKind::ConfigMap, Armor::Base64),
            None
        );
        assert_eq!(
            read(
                &json!({"binaryData": {"k": "/w=="}}),
                SourceKind::ConfigMap,
                Armor::Auto
            )
            .unwrap(),
            [0xff]
        );
        assert_eq!(
            read(
                &json!({"stringData": {"k": "?"}}),
                SourceKind::Secret,
                Armor::Auto
            )
            .unwrap(),
            b"?"
        );
    }
}
