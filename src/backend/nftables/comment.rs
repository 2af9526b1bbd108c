//! Comments of rules, in the format of nft's user data.

/// A rule's user data: one comment (`NFTNL_UDATA_RULE_COMMENT`), as nft writes it.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(250)];
    let mut out = vec![0, text.len() as u8 + 1];
    out.extend_from_slice(text);
    out.push(0);
    out
}

/// The comment in a rule's user data.
pub(super) fn comment_of(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
            return Some(String::from_utf8_lossy(&value[..end]).into_owned());
        }
        data = &rest[usize::from(*length)..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_read_back() {
        assert_eq!(comment_of(&comment("all-inbound: taken")).as_deref(), Some("all-inbound: taken"));
        assert_eq!(comment_of(&[1, 1, 7, 0, 2, b'x', 0]).as_deref(), Some("x"));
        assert_eq!(comment_of(&[0, 9, 1]), None);
        assert_eq!(comment_of(&[]), None);
    }
}
