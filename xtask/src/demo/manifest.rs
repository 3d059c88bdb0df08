//! The manifests of the story.

/// The namespace of everything.
pub const NAMESPACE: &str = "demo";
/// The `SealConfig`.
pub const NAME: &str = "demo-app";
/// What the application's pods mount.
pub const SECRET: &str = "demo-app-root-key";

/// The namespace, with more lines of its `metadata`.
pub fn namespace(more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
{more}"
    )
}

/// All that `wrap` needs to know.
pub fn seals(seal: &str) -> String {
    format!(
        "apiVersion: autounseal.dev/v1alpha1
kind: SealConfig
metadata:
  name: {NAME}
  namespace: {NAMESPACE}
spec:
  seals:
{seal}"
    )
}

/// The same with the key that `wrap` printed and a target.
pub fn seal_config(seal: &str, wrapped: &str) -> String {
    let head = if wrapped.lines().any(|line| line.starts_with("wrapped:")) {
        ""
    } else {
        "    wrapped:\n"
    };
    let entries: String = wrapped
        .lines()
        .map(|line| ["    ", line, "\n"].concat())
        .collect();
    format!(
        "{}  keys:
  - name: master
{head}{entries}  targets:
  - name: app
    secret:
      name: {SECRET}
      data:
      - name: master.key
        key: {{name: master}}
",
        seals(seal)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrap_prints_lands_below_the_key() {
        let pasted = seal_config(
            "  - name: aws\n",
            "wrapped:
- seal: aws
  inline: QUJD
",
        );
        assert!(pasted.contains(
            "  seals:
  - name: aws
  keys:
  - name: master
    wrapped:
    - seal: aws
      inline: QUJD
  targets:
"
        ));
        assert_eq!(
            pasted,
            seal_config(
                "  - name: aws\n",
                "- seal: aws
  inline: QUJD
"
            )
        );
    }

    #[test]
    fn more_lines_belong_to_the_metadata_of_the_namespace() {
        assert!(namespace("").ends_with("metadata:\n  name: demo\n"));
        let labelled = namespace("  labels:\n    a: b\n");
        assert!(labelled.ends_with("  name: demo\n  labels:\n    a: b\n"));
    }
}
