//! The README says what the program does.

use podweir::config::options::{Group, OPTIONS};

const START: &str = "<!-- options: written by `cargo test` with PODWEIR_UPDATE_README=1 -->\n";
const END: &str = "<!-- end of options -->\n";

/// The option table as the README shows it.
fn table() -> String {
    let mut out = String::from("| flag | variable | what it does |\n|---|---|---|\n");
    let groups = [Group::Proxy, Group::Inbound, Group::Outbound, Group::Dns, Group::Runtime, Group::Operation];
    for group in groups {
        out += &format!("| **{}** | | |\n", group.heading());
        for spec in OPTIONS.iter().filter(|spec| spec.group == group) {
            let short = spec.short.map(|c| format!("`-{c}`, ")).unwrap_or_default();
            let long = if spec.long.is_empty() { String::new() } else { format!("{short}`--{}`", spec.long) };
            let variables: Vec<String> = spec.env.iter().map(|name| format!("`{name}`")).collect();
            // Variables have a column of their own.
            let list = format!(" [{}]", spec.env.join(", "));
            let help = spec.help.strip_suffix(&list).unwrap_or(spec.help).replace("'*'", "`*`").replace('|', "\\|");
            out += &format!("| {long} | {} | {help} |\n", variables.join(", "));
        }
    }
    out
}

#[test]
fn the_option_table_is_that_of_the_program() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let start = readme.find(START).unwrap() + START.len();
    let end = readme.find(END).unwrap();
    if std::env::var_os("PODWEIR_UPDATE_README").is_some() {
        std::fs::write(path, format!("{}{}{}", &readme[..start], table(), &readme[end..])).unwrap();
        return;
    }
    assert!(readme[start..end] == table(), "run the tests once with PODWEIR_UPDATE_README=1");
}
