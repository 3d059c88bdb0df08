//! Runs the operator's fuzz targets by name: `cargo xtask fuzz NAME`.

/// The target of this name.
///
/// # Panics
/// When there is none, and when the target has found something.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = autounseal::fuzzing::TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no target {name}"));
    target(data);
}
