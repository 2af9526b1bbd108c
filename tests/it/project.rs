//! What the project's files say of each other: versions that stand in several of them. And how
//! its program is linked.

use crate::fixture::PODWEIR;

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

/// No loader is asked for, where it lies is known to nobody before it starts (static-pie), and
/// nothing of it can be both written and run (elf(5)).
#[test]
fn the_program_is_static_and_lies_anywhere() {
    const INTERPRETER: u64 = 3;
    const STACK: u64 = 0x6474_e551;
    let elf = std::fs::read(PODWEIR).unwrap();
    let number = |at: usize, bytes: usize| elf[at..at + bytes].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    assert_eq!((number(0, 4), number(4, 2)), (0x464c_457f, 0x0102), "64 bits, little-endian");
    assert_eq!(number(16, 2), 3, "ET_DYN");
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let headers = (0..count).map(|n| usize::try_from(first + n * size).unwrap());
    let headers: Vec<(u64, u64)> = headers.map(|at| (number(at, 4), number(at + 4, 4))).collect();
    assert!(headers.iter().all(|(kind, _)| *kind != INTERPRETER), "{headers:x?}");
    assert!(headers.iter().any(|(kind, _)| *kind == STACK), "{headers:x?}");
    assert!(headers.iter().all(|(_, flags)| flags & 3 != 3), "{headers:x?}");
}
