//! Elements of sets and entries of maps in nft's words.

use crate::backend::nftables::expr::code;
use crate::backend::nftables::written::fields::Item;
use crate::backend::nftables::written::sets::SetEntry;

use super::tokens::Token;

/// The elements of a set; `None` where one is no plain value.
pub(super) fn items(tokens: &[Token]) -> Option<Vec<Item>> {
    tokens.split(|token| *token == Token::Sign(',')).filter(|item| !item.is_empty()).map(item).collect()
}

/// The entries of a map of verdicts, such as `80 : accept`; `None` where one is something else.
pub(super) fn entries(tokens: &[Token]) -> Option<Vec<SetEntry>> {
    tokens.split(|token| *token == Token::Sign(',')).filter(|entry| !entry.is_empty()).map(entry).collect()
}

fn entry(tokens: &[Token]) -> Option<SetEntry> {
    let colon = tokens.iter().position(|token| *token == Token::Word(":"))?;
    let (key, verdict) = (tokens.get(..colon)?, tokens.get(colon + 1..)?);
    let key = match key {
        [Token::Word("*")] => None,
        key => Some(item(key)?),
    };
    let verdict = match *verdict {
        [Token::Word(verdict)] => (code::by_name(verdict)?, None),
        [Token::Word("jump"), chain] => (code::JUMP, Some(chain.text()?.to_owned())),
        [Token::Word("goto"), chain] => (code::GOTO, Some(chain.text()?.to_owned())),
        _ => return None,
    };
    Some((key, verdict))
}

/// A value, a range or a prefix; behind it there may be a timeout and the like.
pub(super) fn item(tokens: &[Token]) -> Option<Item> {
    let (first, rest) = tokens.split_first()?;
    let known = |token: &Token| matches!(token, Token::Word("timeout" | "expires" | "counter" | "comment"));
    if rest.first().is_some_and(|token| !known(token)) {
        return None;
    }
    match *first {
        Token::Quoted(name) => Some((name.to_owned(), None)),
        // A name may have a dash in it, a number or an address only as a range.
        Token::Word(word) => match word.split_once('-') {
            Some((first, last)) if first.starts_with(|c: char| c.is_ascii_hexdigit() || c == ':') => {
                Some((first.to_owned(), Some(last.to_owned())))
            }
            _ => Some((word.to_owned(), None)),
        },
        _ => None,
    }
}
