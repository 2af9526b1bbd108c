//! What the project's files say of each other: versions that stand in several of them.

/// A file of the project.
macro_rules! file {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $path))
    };
}

/// What stands between two texts in a file.
fn between<'a>(file: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = file.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {file}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} behind {before:?}")).0
}

#[test]
fn one_compiler_is_stated_pinned_and_used_for_the_image() {
    let pinned = between(file!("rust-toolchain.toml"), "channel = \"", "\"");
    let stated = between(file!("Cargo.toml"), "rust-version = \"", "\"");
    assert_eq!(pinned.rsplit_once('.').unwrap().0, stated);
    assert_eq!(between(file!("Dockerfile"), "FROM rust:", "-slim"), pinned);
}
