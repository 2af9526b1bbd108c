//! The options that an injector writes for a typical pod.

#[rustfmt::skip]
pub const TYPICAL: &[&str] = &[
    "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT",
    "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020",
];
