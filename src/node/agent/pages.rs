//! A list that is longer than a line of the socket, in pages of as many pods as a line holds.

use std::fmt::{self, Display, Formatter};

use serde_json::{Value, json};

use crate::cni::agent::message::LONGEST_LINE;
use crate::node::cache::Known;

/// How much of a line the pods take at most, in bytes; the rest is for the text around them.
const ROOM: usize = LONGEST_LINE - 2048;

/// Where a pod stands in the list, by its names: pods that come and go between two pages change the
/// place of no other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    namespace: String,
    name: String,
    uid: String,
}

impl Position {
    pub(super) fn of(known: &Known) -> Self {
        Self { namespace: known.namespace.clone(), name: known.name.clone(), uid: known.uid.clone() }
    }

    /// Reads a position as it stands in a page; the empty text is before every pod.
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { namespace: next(), name: next(), uid: next() }
    }
}

impl Display for Position {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.name, self.uid)
    }
}

/// The pods from the position `from` on, as many as a line holds, and under `next` the position of the
/// first pod that follows, if there is one. The rows are in the order of their positions.
pub(super) fn page(rows: impl Iterator<Item = (Position, Value)>, from: &Position) -> Value {
    let (mut pods, mut room) = (Vec::new(), ROOM);
    for (position, row) in rows.filter(|(position, _)| position >= from) {
        // With the comma.
        let length = row.to_string().len() + 1;
        // One alone that is too long is refused when it is sent, and does not stop the others.
        if length > room && !pods.is_empty() {
            return json!({ "pods": pods, "next": position.to_string() });
        }
        room = room.saturating_sub(length);
        pods.push(row);
    }
    json!({ "pods": pods })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::agent::message::{Answer, encode};

    fn row(number: usize) -> (Position, Value) {
        // The longest names and reasons that there are.
        let (name, uid) = (format!("{number:0>253}"), format!("{number:0>36}"));
        let row = json!(["n".repeat(63), name, "drifted", uid, "\u{1}".repeat(80), true]);
        (Position { namespace: "n".repeat(63), name, uid }, row)
    }

    #[test]
    fn every_pod_is_on_one_page_and_every_page_fits_into_a_line() {
        let (mut told, mut from, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            // Between two pages one goes that was told, and one that was not.
            let rows = (0..1000).filter(|number| pages == 0 || (*number != 3 && *number != 998)).map(row);
            let report = page(rows, &Position::parse(&from));
            pages += 1;
            encode(Answer::Report { report: report.clone() }).unwrap();
            told.extend(report["pods"].as_array().unwrap().iter().map(|row| row[1].clone()));
            match report["next"].as_str() {
                Some(next) => from = next.to_owned(),
                None => break,
            }
        }
        let wanted: Vec<Value> =
            (0..1000).filter(|number| *number != 998).map(|number| row(number).1[1].clone()).collect();
        assert_eq!(told, wanted);
        assert!((10..40).contains(&pages), "{pages}");
    }

    #[test]
    fn a_page_begins_where_the_one_before_ended_even_if_that_pod_has_gone() {
        let rows = || [2, 4].into_iter().map(row);
        let of = |from: &str| page(rows(), &Position::parse(from))["pods"].as_array().map(Vec::len);
        assert_eq!(of(""), Some(2));
        assert_eq!(of(&row(3).0.to_string()), Some(1));
        assert_eq!(of(&row(4).0.to_string()), Some(1));
        assert_eq!(of(&row(5).0.to_string()), Some(0));
        // Nonsense is a place as well.
        assert_eq!((of("/"), of("zzz"), of("a/b/c/d")), (Some(2), Some(0), Some(2)));
    }
}
