//! Text of others, as it may be shown: what a terminal or a reader would take for
//! something else is written out.

use std::borrow::Cow;

/// Escapes control characters, those of lines included, and what reverses the order of
/// text, as JSON does (`\u001b`): whoever may name a chain could otherwise rewrite a
/// report on the screen, or add lines to it.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_special)
}

/// The same for whole lines, which end where they did.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_special(c) && c != '\n' && c != '\t')
}

/// Unicode's controls, line separators and directional formatting (UAX #9).
fn is_special(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, is_special: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_special) {
        return text.into();
    }
    let one = |c: char| if is_special(c) { format!("\\u{:04x}", c as u32) } else { c.into() };
    text.chars().map(one).collect::<String>().into()
}
