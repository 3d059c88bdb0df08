//! Files of the chart that are made from others: its copy of the CRDs, and the README's table of values from the
//! comments in values.yaml.

use std::path::{Path, PathBuf};

use crate::failure::{Doing, Outcome};
use crate::repository;

const FOLDER: &str = "charts/auto-unseal-operator";
const BEGIN: &str = "<!-- values: made by cargo xtask gen -->\n";
const END: &str = "<!-- end of values -->\n";

/// Writes them anew.
pub fn write(definitions: &str) -> Outcome<()> {
    for (path, content) in files(definitions)? {
        std::fs::write(repository::root().join(&path), content).doing(format!("write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Each file with what it must hold.
fn files(definitions: &str) -> Outcome<[(PathBuf, String); 2]> {
    let folder = Path::new(FOLDER);
    let copy = folder.join("files").join("autounseal.dev.yaml");
    let readme = folder.join("README.md");
    let text = read(&readme)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or("the chart's README.md has no place for the table of values")?;
    let table = table(&values(&read(&folder.join("values.yaml"))?)?);
    let readme_text = format!("{before}{BEGIN}\n{table}\n{END}{after}");
    Ok([(copy, read(Path::new(definitions))?), (readme, readme_text)])
}

fn read(path: &Path) -> Outcome<String> {
    let bytes = repository::read(&repository::root().join(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One value of the chart.
#[derive(Debug, PartialEq)]
struct Value {
    path: String,
    default: String,
    comment: String,
}

/// Reads values.yaml as it is written here: two spaces a level, each value on one line with its comment above.
fn values(text: &str) -> Outcome<Vec<Value>> {
    let mut found: Vec<Value> = Vec::new();
    let mut above: Vec<&str> = Vec::new();
    let mut comment = String::new();
    for line in text.lines() {
        let bare = line.trim_start();
        if let Some(words) = bare.strip_prefix("# ") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(words);
            continue;
        }
        if bare.is_empty() {
            continue;
        }
        let level = (line.len() - bare.len()) / 2;
        let (key, default) = bare
            .split_once(':')
            .filter(|_| level <= above.len())
            .ok_or_else(|| format!("values.yaml: `{line}` is not a value on one line"))?;
        above.truncate(level);
        above.push(key);
        let (path, default) = (above.join("."), default.trim().to_owned());
        let comment = std::mem::take(&mut comment);
        // A line without a value holds those below it.
        match (default.is_empty(), comment.is_empty()) {
            (true, _) => {}
            (false, true) => return Err(format!("values.yaml: {path} has no comment").into()),
            (false, false) => found.push(Value {
                path,
                default,
                comment,
            }),
        }
    }
    Ok(found)
}

fn table(values: &[Value]) -> String {
    let rows = values.iter().map(|value| {
        let comment = value.comment.replace('|', "\\|");
        format!("| `{}` | `{}` | {comment} |\n", value.path, value.default)
    });
    let head = "| value | default | meaning |\n| --- | --- | --- |\n".to_owned();
    rows.fold(head, |text, row| text + &row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_chart_are_those_of_their_sources() {
        for (path, content) in files("crds/autounseal.dev.yaml").unwrap() {
            assert!(
                read(&path).unwrap_or_default() == content,
                "{} is stale: run cargo xtask gen",
                path.display()
            );
        }
    }

    #[test]
    fn every_value_is_in_the_schema_and_nothing_else_is() {
        fn leaves(schema: &serde_json::Value, path: &str, into: &mut Vec<String>) {
            match schema["properties"].as_object() {
                Some(properties) => {
                    assert_eq!(schema["additionalProperties"], false, "{path} takes any value");
                    for (name, inner) in properties {
                        leaves(inner, format!("{path}.{name}").trim_start_matches('.'), into);
                    }
                }
                None => into.push(path.to_owned()),
            }
        }
        let schema = read(&Path::new(FOLDER).join("values.schema.json")).unwrap();
        let mut in_schema = Vec::new();
        leaves(&serde_json::from_str(&schema).unwrap(), "", &mut in_schema);
        let values = values(&read(&Path::new(FOLDER).join("values.yaml")).unwrap()).unwrap();
        // Kubernetes' own types are the apiserver's to check; Helm adds `global`; a limit of CPU may be set but has no default.
        let open = ["podSecurityContext", "containerSecurityContext"];
        let mut in_values: Vec<String> = values
            .iter()
            .filter(|value| !open.iter().any(|name| value.path.starts_with(name)))
            .map(|value| value.path.clone())
            .collect();
        in_values.extend(
            open.into_iter()
                .chain(["global", "resources.limits.cpu"])
                .map(str::to_owned),
        );
        in_schema.sort();
        in_values.sort();
        assert_eq!(in_schema, in_values);
    }

    #[test]
    fn values_are_read_with_their_comments() {
        let text = "# One.\none: 1\n\ntwo:\n  # Two\n  # and more.\n  inner: {a: b}\n# Last.\nlast: \"\"\n";
        let found = values(text).unwrap();
        let words: Vec<_> = found
            .iter()
            .map(|value| {
                (
                    value.path.as_str(),
                    value.default.as_str(),
                    value.comment.as_str(),
                )
            })
            .collect();
        let expected = [
            ("one", "1", "One."),
            ("two.inner", "{a: b}", "Two and more."),
            ("last", "\"\"", "Last."),
        ];
        assert_eq!(words, expected);
        assert!(values("bare: 1\n").is_err());
    }
}
