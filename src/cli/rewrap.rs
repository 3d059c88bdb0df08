//! `autounseal rewrap`: new copies of the keys that a file brings, under every seal that is to wrap them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Done, Failure, Output, check,
    destination::{Way, destinations},
    manifest::{self, Object, Position},
    offline::{self, Caller},
    output, sending, unwrap,
};
use crate::{
    api::{Reason, WrappedFormat},
    seal::{
        Fault, KeyBytes,
        model::{Key, Model, Seal},
    },
    yaml::{self, Step},
};

mod in_place;

use in_place::InPlace;

/// Wrap the keys of a file anew, under every seal that is enabled
///
/// Opens each key that the file brings (or one, with --key) through whichever of its copies open, with your own cloud
/// identity, and wraps it anew under every seal with use Wrap that is not disabled: after a seal was added, disabled or
/// aimed at another KMS key, or after a KMS key was rotated. All copies that open must be the same key, and the one that
/// checkValue pins. A copy keeps its format and context; a new seal's takes those of the first copy. Copies under
/// disabled seals are left out of the result.
///
/// Prints the new `wrapped:` of each key to paste. With --in-place the file is rewritten so that nothing but these lists
/// changes; a comment inside of one is lost. Generated and imported keys are not in the file: the operator looks after
/// their copies.
///
/// The keys are sent only to KMS keys that you name yourself: with --to for every enabled seal, or by confirming at the
/// terminal. What the file says about endpoints, roles and credentials is not used unless you pass --trust-file; your own
/// identity is, as for `wrap`. A copy in a Secret or ConfigMap is found when that object is in the same file; its successor is
/// inline.
///
/// Examples:
///
///   autounseal rewrap -f seal.yaml --to arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab
///   autounseal rewrap -f seal.yaml --key master --in-place \
///       --to arn:aws:kms:eu-west-1:123456789012:alias/root --to ocid1.key.oc1.eu-frankfurt-1.…
///
/// Exit codes: 0 every key was wrapped and read back, 1 one could not be (nothing is printed or changed then), 2 misuse.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct RewrapArgs {
    /// The file with the SealConfig, YAML or JSON, at most 1 MiB
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Only this key
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Rewrite the file instead of printing. It must be a regular file, and its mode is kept
    #[arg(long)]
    in_place: bool,
    /// A KMS key that the keys may be sent to, as an ARN (key or alias) or OCID. One for every enabled seal
    #[arg(long, value_name = "ARN|OCID")]
    to: Vec<String>,
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

/// The new copies of a key.
struct Rewrapped {
    key: String,
    /// Its place in `spec.keys`.
    index: usize,
    wrapped: Value,
}

pub(super) async fn run(args: &RewrapArgs) -> Done {
    let shown = args.file.display().to_string();
    if args.in_place && args.file == Path::new("-") {
        return Err(Failure::Misuse(
            "--in-place needs a file, not standard input".to_owned(),
        ));
    }
    let opened = args.in_place.then(|| InPlace::open(&args.file)).transpose()?;
    let text = match &opened {
        Some(opened) => opened.text.clone(),
        None => manifest::read_text(&args.file)?,
    };
    let objects = manifest::objects(&shown, &text)?;
    let ((position, object), others) =
        manifest::one_of(objects, &shown, args.name.as_deref(), args.namespace.as_deref())?;
    let model = check::check(&object).map_err(|problems| unwrap::wrong(&object, &problems))?;
    let keys = chosen(&model, args.key.as_deref())?;
    let ways = every_way(&model, &args.to, args.trust_file)?;
    let names: Vec<_> = keys.iter().map(|key| format!("{:?}", key.name)).collect();
    let what = match names.as_slice() {
        [one] => format!("key {one}"),
        several => format!("keys {}", several.join(", ")),
    };
    sending::permitted(&what, &ways, !args.to.is_empty())?;
    let hand = Hand::new(args, &model, &object, &others, ways);
    let mut done = Vec::new();
    for key in keys {
        done.push(hand.rewrap(key).await?);
    }
    match opened {
        Some(opened) => {
            let new = spliced(&text, &shown, position, &done)?;
            opened.replace(&new)?;
            output::note(&format!("{shown} is rewritten; look at it with: git diff"));
        }
        None => print(args, &object, &done)?,
    }
    Ok(())
}

/// The keys to wrap anew.
fn chosen<'m>(model: &'m Model, only: Option<&str>) -> Result<Vec<&'m Key>, Failure> {
    let (brought, stored): (Vec<_>, Vec<_>) = model
        .keys
        .iter()
        .filter(|key| only.is_none_or(|name| key.name == name))
        .partition(|key| key.is_brought());
    let Some(name) = only else {
        for key in stored {
            output::note(&format!(
                "key {:?} is not brought in the file; the operator looks after its copies",
                key.name
            ));
        }
        if brought.is_empty() {
            return Err(Failure::No(
                "the SealConfig brings no key, so there is nothing to wrap anew".to_owned(),
            ));
        }
        return Ok(brought);
    };
    if brought.is_empty() {
        let names: Vec<_> = model.keys.iter().map(|key| key.name.as_str()).collect();
        return Err(Failure::Misuse(if stored.is_empty() {
            format!("the SealConfig has no key {name:?}; it has {}", names.join(", "))
        } else {
            format!("key {name:?} is not brought in the file; the operator looks after its copies")
        }));
    }
    Ok(brought)
}

/// Every enabled seal, each aimed where the caller says.
fn every_way(model: &Model, to: &[String], trust_file: bool) -> Result<Vec<Way>, Failure> {
    let enabled: Vec<Seal> = model
        .seals
        .iter()
        .filter(|seal| seal.wraps && !seal.disabled)
        .cloned()
        .collect();
    if enabled.is_empty() {
        return Err(Failure::No(
            "every seal with use Wrap is disabled, so there is none to wrap under; add one".to_owned(),
        ));
    }
    let ways = destinations(&enabled, None, to, trust_file)?;
    let left: Vec<_> = enabled
        .iter()
        .filter(|seal| !ways.iter().any(|way| way.seal.name == seal.name))
        .map(|seal| format!("{:?} ({})", seal.name, seal.cloud.configured_key()))
        .collect();
    if left.is_empty() {
        Ok(ways)
    } else {
        Err(Failure::Misuse(format!(
            "no --to names the key of seal {}, which is enabled and would lose its copy; name it, too, or set disabled: true",
            left.join(" and of seal ")
        )))
    }
}

/// What the work on a file needs.
struct Hand<'a> {
    model: &'a Model,
    object: &'a Object,
    others: &'a [Object],
    ways: Vec<Way>,
    /// All seals, with the caller's identity: copies are opened through these.
    own: Vec<Seal>,
    caller: Caller,
}

impl<'a> Hand<'a> {
    fn new(
        args: &RewrapArgs,
        model: &'a Model,
        object: &'a Object,
        others: &'a [Object],
        ways: Vec<Way>,
    ) -> Self {
        let own: Vec<Seal> = model
            .seals
            .iter()
            .map(|seal| {
                let own = offline::with_own_identity(seal, args.trust_file);
                if !ways.iter().any(|way| way.seal.name == seal.name) {
                    own.notes.iter().for_each(|note| output::note(note));
                }
                own.seal
            })
            .collect();
        let caller = Caller::of(model, own.iter(), args.trust_file);
        Self {
            model,
            object,
            others,
            ways,
            own,
            caller,
        }
    }

    async fn rewrap(&self, key: &Key) -> Result<Rewrapped, Failure> {
        let bytes = self.open(key).await?;
        let index = self.index(key)?;
        let mut entries = Vec::new();
        for way in self.in_order(index) {
            let (format, context) = packing(key, &way.seal.name);
            let part = format!("key {:?}, seal {:?}", key.name, way.seal.name);
            let wrapped = sending::wrap(&self.caller, way, &part, &bytes, format, &context).await?;
            entries.push(sending::entry(&way.seal.name, format, &context, &wrapped));
        }
        Ok(Rewrapped {
            key: key.name.clone(),
            index,
            wrapped: entries.into(),
        })
    }

    /// The key, from every copy that opens: they must agree, and it must be the one that is pinned.
    async fn open(&self, key: &Key) -> Result<KeyBytes, Failure> {
        let mut opened: Option<(String, KeyBytes)> = None;
        for copy in &key.copies {
            let Some(seal) = self.own.iter().find(|seal| seal.name == copy.seal) else {
                continue;
            };
            let part = format!("key {:?}, seal {:?}", key.name, seal.name);
            let wrapped = match unwrap::source::wrapped(copy, self.others, &self.model.id.namespace) {
                Ok(wrapped) => wrapped,
                Err(why) => {
                    output::note(&format!("{part}: {why}"));
                    continue;
                }
            };
            let found = self
                .caller
                .unwrap(seal, &wrapped, copy.format, &copy.context)
                .await;
            let found = match found {
                Ok(found) => found.key,
                Err(fault) => {
                    output::note(&fault.of(&part).to_string());
                    continue;
                }
            };
            unwrap::pinned(self.model, key, &found).map_err(|fault| fault.of(&part))?;
            match &opened {
                Some((first, bytes)) if !bytes.same_as(&found) => {
                    return Err(differ(&key.name, first, &seal.name).into());
                }
                Some(_) => {}
                None => opened = Some((seal.name.clone(), found)),
            }
        }
        opened.map(|(_, bytes)| bytes).ok_or_else(|| {
            Failure::No(format!(
                "no copy of key {:?} could be opened, so nothing is wrapped anew",
                key.name
            ))
        })
    }

    fn index(&self, key: &Key) -> Result<usize, Failure> {
        let keys = self.object.value["spec"]["keys"].as_array();
        keys.and_then(|keys| keys.iter().position(|spec| spec["name"] == key.name.as_str()))
            .ok_or_else(|| Failure::No(format!("key {:?} is not in the file", key.name)))
    }

    /// Copies stay in the order of the file; those of new seals follow by priority.
    fn in_order(&self, index: usize) -> Vec<&Way> {
        let listed = self.object.value["spec"]["keys"][index]["wrapped"].as_array();
        let place = |way: &&Way| {
            listed
                .and_then(|copies| {
                    copies
                        .iter()
                        .position(|copy| copy["seal"] == way.seal.name.as_str())
                })
                .unwrap_or(usize::MAX)
        };
        let mut ways: Vec<&Way> = self
            .model
            .seals
            .iter()
            .filter_map(|seal| self.ways.iter().find(|way| way.seal.name == seal.name))
            .collect();
        ways.sort_by_key(place);
        ways
    }
}

/// Format and context of a seal's copy, or of the first one if it has none yet.
fn packing(key: &Key, seal: &str) -> (WrappedFormat, BTreeMap<String, String>) {
    let copy = key.copies.iter().find(|copy| copy.seal == seal);
    copy.or(key.copies.first())
        .map(|copy| (copy.format, copy.context.clone()))
        .unwrap_or_default()
}

fn differ(key: &str, first: &str, other: &str) -> Fault {
    Fault::invalid(
        Reason::CopiesDiffer,
        format!(
            "key {key:?}: the copies for seals {first:?} and {other:?} hold different keys, so none is wrapped anew; find out \
             which one is right, and take the other out of the file"
        ),
    )
}

/// The file with the new lists in it.
fn spliced(text: &str, shown: &str, position: Position, done: &[Rewrapped]) -> Result<String, Failure> {
    let mut text = text.to_owned();
    for key in done {
        let mut path = Vec::new();
        if let Some(item) = position.item {
            path.extend([Step::Name("items"), Step::Index(item)]);
        }
        path.extend([
            Step::Name("spec"),
            Step::Name("keys"),
            Step::Index(key.index),
            Step::Name("wrapped"),
        ]);
        text = yaml::replace(&text, position.document, &path, &key.wrapped).map_err(|error| {
            Failure::No(format!(
                "{shown}, `wrapped` of key {:?}: {error}; without --in-place the entries are printed",
                key.key
            ))
        })?;
    }
    Ok(text)
}

fn print(args: &RewrapArgs, object: &Object, done: &[Rewrapped]) -> Done {
    match args.output {
        Output::Json => {
            let keys: Vec<_> = done
                .iter()
                .map(|key| json!({"name": key.key, "wrapped": key.wrapped}))
                .collect();
            output::json(&json!({"keys": keys}));
        }
        Output::Text => {
            let config = object.name().unwrap_or_default();
            let mut parts = Vec::new();
            for key in done {
                let body = yaml::print(&json!({"wrapped": key.wrapped}))
                    .map_err(|error| Failure::No(error.to_string()))?;
                parts.push(format!(
                    "# Paste under key {} of SealConfig {config}:\n{body}",
                    key.key
                ));
            }
            output::report(&parts.join("---\n"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::tests::model;

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    const OTHER: &str = "arn:aws:kms:eu-west-1:123456789012:key/ffff0000-12ab-34cd-56ef-1234567890ab";

    fn two() -> Model {
        model(&json!({
            "seals": [
                {"name": "a", "awskms": {"kmsKeyID": KEY}}, {"name": "b", "awskms": {"kmsKeyID": OTHER}},
                {"name": "old", "disabled": true, "awskms": {"kmsKeyID": "alias/old"}},
                {"name": "native", "use": ["Native"], "awskms": {"kmsKeyID": "alias/native"}},
            ],
            "keys": [
                {"name": "made", "generate": {}},
                {"name": "root", "wrapped": [
                    {"seal": "old", "inline": "eA=="},
                    {"seal": "b", "format": "kms", "context": {"k": "v"}, "inline": "eA=="},
                ]},
            ],
        }))
    }

    #[test]
    fn only_brought_keys_are_wrapped_anew() {
        let model = two();
        let names = |only| {
            chosen(&model, only).map(|keys| keys.iter().map(|key| key.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(None).unwrap(), ["root"]);
        assert_eq!(names(Some("root")).unwrap(), ["root"]);
        for wrong in ["made", "none"] {
            assert!(matches!(names(Some(wrong)), Err(Failure::Misuse(_))), "{wrong}");
        }
    }

    #[test]
    fn every_enabled_seal_is_named_and_no_other() {
        let model = two();
        let ways = |to: &[&str]| {
            let to: Vec<_> = to.iter().map(|&text| text.to_owned()).collect();
            every_way(&model, &to, false)
                .map(|ways| ways.into_iter().map(|way| way.seal.name).collect::<Vec<_>>())
        };
        assert_eq!(ways(&[KEY, OTHER]).unwrap(), ["a", "b"]);
        assert_eq!(ways(&[]).unwrap(), ["a", "b"], "all are asked about");
        let Err(Failure::Misuse(message)) = ways(&[KEY]) else {
            panic!("a copy was lost")
        };
        assert!(message.contains(OTHER), "{message}");
        let old = "arn:aws:kms:eu-west-1:123456789012:alias/old";
        assert!(matches!(ways(&[KEY, OTHER, old]), Err(Failure::Misuse(_))));
    }

    #[test]
    fn a_new_seal_takes_the_packing_of_the_first_copy() {
        let model = two();
        let key = &model.keys[1];
        let (format, context) = packing(key, "b");
        assert_eq!((format, context["k"].as_str()), (WrappedFormat::Kms, "v"));
        // Copies stand by the priority of their seals, then by name.
        assert_eq!(packing(key, "a").0, key.copies[0].format);
    }
}
