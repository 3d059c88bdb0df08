//! How each object stands, kept once for all of its metrics rather than as a gauge, with its labels, in each of them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

/// The kind that most metrics speak of.
const SEAL_CONFIG: &str = "SealConfig";

/// How a SealConfig stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectState<'a> {
    /// It is Ready.
    pub ready: bool,
    /// The word of its Ready condition.
    pub reason: &'a str,
    /// Everything that is counted of it.
    pub figures: Figures,
}

/// What is counted of a SealConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Seals that do not work.
    pub seals_unhealthy: usize,
    /// The fewest copies that any of its keys has; `None` = it has no keys.
    pub key_copies_min: Option<usize>,
    /// The seals that every key should be wrapped under.
    pub seals_wrapping: usize,
    /// When the next rotation is due, in seconds of Unix time.
    pub rotation_due: Option<i64>,
    /// Servers that are sealed; `None` = it unseals none.
    pub pods_sealed: Option<u32>,
    /// Since when its wrapped store holds a root token, in seconds of Unix time; `None` = it holds none.
    pub root_token_since: Option<i64>,
}

type Kind = &'static str;

/// How all objects stand.
#[derive(Clone, Debug, Default)]
pub struct Objects(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    all: HashMap<Kind, ByNamespace>,
    /// How many are not ready for which reason; a reason stays, with 0, when it has passed.
    not_ready: BTreeMap<(Kind, Box<str>), i64>,
}

/// By namespace, then by name.
type ByNamespace = HashMap<Box<str>, HashMap<Box<str>, Standing>>;

#[derive(Debug, Default)]
struct Standing {
    /// `None` = it is ready.
    not_ready: Option<Box<str>>,
    /// Of SealConfigs.
    figures: Option<Box<Figures>>,
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Name, what it says, and how it is read of a SealConfig that has it.
type Figure = (&'static str, &'static str, fn(&Figures) -> Option<i64>);

const FIGURES: [Figure; 6] = [
    (
        "seals_unhealthy",
        "Seals that do not work, by object",
        |figures| Some(count(figures.seals_unhealthy)),
    ),
    (
        "key_copies_min",
        "The fewest seals that any key of the object is wrapped under",
        |figures| figures.key_copies_min.map(count),
    ),
    (
        "seals_wrapping",
        "Enabled seals of the object that wrap keys: how many copies each key should have",
        |figures| Some(count(figures.seals_wrapping)),
    ),
    (
        "rotation_due_timestamp_seconds",
        "When the next rotation of a key of the object is due",
        |figures| figures.rotation_due,
    ),
    (
        "pods_sealed",
        "Servers of the object that said that they are sealed",
        |figures| figures.pods_sealed.map(i64::from),
    ),
    (
        "root_token_held_since_timestamp_seconds",
        "Since when the wrapped store of the object holds a root token",
        |figures| figures.root_token_since,
    ),
];

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a SealConfig stands.
    pub fn seal_config(&self, namespace: &str, name: &str, state: &ObjectState<'_>) {
        let figures = Some(Box::new(state.figures));
        self.stands(SEAL_CONFIG, namespace, name, (state.ready, state.reason), figures);
    }

    /// Whether an object of another kind is Ready, and if not, why.
    pub fn readiness(&self, kind: Kind, namespace: &str, name: &str, ready: bool, reason: &str) {
        self.stands(kind, namespace, name, (ready, reason), None);
    }

    fn stands(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        (ready, reason): (bool, &str),
        figures: Option<Box<Figures>>,
    ) {
        let standing = Standing {
            not_ready: (!ready).then(|| reason.into()),
            figures,
        };
        self.lock().put(kind, namespace, name, Some(standing));
    }

    /// An object is gone.
    pub fn forget(&self, kind: Kind, namespace: &str, name: &str) {
        self.lock().put(kind, namespace, name, None);
    }

    /// A SealConfig is gone.
    pub fn forget_seal_config(&self, namespace: &str, name: &str) {
        self.forget(SEAL_CONFIG, namespace, name);
    }
}

impl Inner {
    fn put(&mut self, kind: Kind, namespace: &str, name: &str, standing: Option<Standing>) {
        if let Some(reason) = standing.as_ref().and_then(|standing| standing.not_ready.clone()) {
            *self.not_ready.entry((kind, reason)).or_default() += 1;
        }
        let spaces = self.all.entry(kind).or_default();
        let before = if let Some(standing) = standing {
            let objects = spaces.entry(namespace.into()).or_default();
            objects.insert(name.into(), standing)
        } else {
            let objects = spaces.get_mut(namespace);
            let before = objects.and_then(|objects| objects.remove(name));
            if spaces.get(namespace).is_some_and(HashMap::is_empty) {
                spaces.remove(namespace);
            }
            before
        };
        if let Some(reason) = before.and_then(|before| before.not_ready)
            && let Some(many) = self.not_ready.get_mut(&(kind, reason))
        {
            *many -= 1;
        }
    }
}

/// Namespace, name, and how each stands.
fn each(spaces: &ByNamespace) -> impl Iterator<Item = (&str, &str, &Standing)> {
    spaces.iter().flat_map(|(namespace, objects)| {
        objects
            .iter()
            .map(move |(name, standing)| (&**namespace, &**name, standing))
    })
}

fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (L, i64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let inner = self.lock();
        let ready = inner.all.iter().flat_map(|(kind, spaces)| {
            each(spaces).map(|(namespace, name, standing)| {
                let labels = [("kind", *kind), ("namespace", namespace), ("name", name)];
                (labels, i64::from(standing.not_ready.is_none()))
            })
        });
        gauge(&mut encoder, "ready", "1 when the object is Ready", ready)?;
        let not_ready = inner
            .not_ready
            .iter()
            .map(|((kind, reason), many)| ([("kind", *kind), ("reason", reason)], *many));
        gauge(
            &mut encoder,
            "not_ready",
            "Objects that are not Ready, by reason",
            not_ready,
        )?;
        for (name, help, read) in FIGURES {
            let values = inner.all.values().flat_map(each);
            let values = values.filter_map(|(namespace, object, standing)| {
                let value = read(standing.figures.as_deref()?)?;
                Some(([("namespace", namespace), ("name", object)], value))
            });
            gauge(&mut encoder, name, help, values)?;
        }
        Ok(())
    }
}
