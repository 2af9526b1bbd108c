//! Text of others, as it may be shown: what a terminal or a reader would take for
//! something else is written out.

use std::borrow::Cow;
use std::time::Duration;

/// Escapes control characters, those of lines included, and what reverses the order of
/// text, as JSON does (`\u001b`): whoever may name a chain could otherwise rewrite a
/// report on the screen, or add lines to it.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_special)
}

/// Escapes what [`printable`] escapes, but for tabs and the ends of lines: for texts of whole lines.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_special(c) && c != '\n' && c != '\t')
}

/// Unicode's controls, line separators and directional formatting (UAX #9).
fn is_special(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, is_special: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_special) {
        return text.into();
    }
    let one = |c: char| if is_special(c) { format!("\\u{:04x}", c as u32) } else { c.into() };
    text.chars().map(one).collect::<String>().into()
}

/// Text cut after `limit` characters; a text that was cut ends with the number of those it had.
pub fn shortened(text: &str, limit: usize) -> Cow<'_, str> {
    match text.char_indices().nth(limit) {
        None => text.into(),
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()).into(),
    }
}

/// Text of others as part of a message of one line: without ends of lines, controls and
/// directions, and cut after so many characters.
pub fn one_line(text: &str, limit: usize) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    shortened(&printable(&lines.collect::<Vec<_>>().join(" ")), limit).into_owned()
}

/// A time as people say it: "200 ms", "9.5 s", "2 min 5 s".
pub fn rounded(time: Duration) -> String {
    let tenths = (time.as_millis() + 50) / 100;
    match tenths {
        0..10 => format!("{} ms", time.as_millis()),
        10..1200 if tenths.is_multiple_of(10) => format!("{} s", tenths / 10),
        10..1200 => format!("{}.{} s", tenths / 10, tenths % 10),
        _ => {
            let seconds = (time.as_millis() + 500) / 1000;
            match (seconds / 60, seconds % 60) {
                (minutes, 0) => format!("{minutes} min"),
                (minutes, seconds) => format!("{minutes} min {seconds} s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_one_harmless_line() {
        assert_eq!(one_line("a\nb\r\n  c\u{9b}31m\u{202e}\u{061c}", 99), "a b c\\u009b31m\\u202e\\u061c");
        assert_eq!(one_line("äöü", 3), "äöü");
        assert_eq!(one_line("äöüß", 3), "äöü… (4 characters)");
        assert_eq!(shortened("", 0), "");
    }

    #[test]
    fn times_are_as_people_say_them() {
        let of = |ms| rounded(Duration::from_millis(ms));
        assert_eq!(rounded(Duration::from_nanos(9_487_598_236)), "9.5 s");
        assert_eq!([of(0), of(7), of(200), of(949)], ["0 ms", "7 ms", "200 ms", "949 ms"]);
        assert_eq!([of(950), of(1500), of(59_960), of(60_000)], ["1 s", "1.5 s", "60 s", "60 s"]);
        assert_eq!([of(125_000), of(120_000), of(3_600_000)], ["2 min 5 s", "2 min", "60 min"]);
    }
}
