//! Splits nft's text into tokens: words, quoted texts, braces and line ends.

/// A token of nft's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    Word(&'a str),
    /// A text in quotes, without them.
    Quoted(&'a str),
    /// One of `{ } ; , ( )`.
    Sign(char),
    End,
}

impl<'a> Token<'a> {
    /// The text of a word or of a quoted one.
    pub fn text(self) -> Option<&'a str> {
        match self {
            Token::Word(text) | Token::Quoted(text) => Some(text),
            _ => None,
        }
    }
}

/// Tokens as text again.
pub fn written(tokens: &[Token]) -> String {
    let mut out = String::new();
    for token in tokens {
        let joined = out.is_empty() || matches!(token, Token::Sign(',' | ';'));
        out += if joined { "" } else { " " };
        match token {
            Token::Word(word) => out += word,
            Token::Quoted(text) => out.extend(["\"", text, "\""]),
            Token::Sign(sign) => out.push(*sign),
            Token::End => {}
        }
    }
    out
}

/// All tokens of a short text; `None` if one cannot be read.
pub fn all(text: &str) -> Option<Vec<Token<'_>>> {
    let mut words = Words::new(text);
    let mut out = Vec::new();
    while let Some(token) = words.token().ok()? {
        out.push(token);
    }
    Some(out)
}

/// A reader of tokens that knows the line, counted from 1.
pub struct Words<'a> {
    rest: &'a str,
    line: usize,
    /// The token that was peeked at and not yet taken.
    next: Option<Token<'a>>,
    /// The number in the last `# handle 7` behind a line.
    handle: Option<u64>,
}

impl<'a> Words<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1, next: None, handle: None }
    }

    pub fn line(&self) -> usize {
        self.line
    }

    /// The handle said behind the line that was read last.
    pub fn take_handle(&mut self) -> Option<u64> {
        self.handle.take()
    }

    /// The next token, which stays where it is; `None` at the end of the text.
    ///
    /// # Errors
    ///
    /// A character that begins no token, or a quote without an end.
    pub fn peek(&mut self) -> Result<Option<Token<'a>>, String> {
        if self.next.is_none() {
            self.next = self.read()?;
        }
        Ok(self.next)
    }

    /// Takes the next token; `None` at the end of the text.
    ///
    /// # Errors
    ///
    /// A character that begins no token, or a quote without an end.
    pub fn token(&mut self) -> Result<Option<Token<'a>>, String> {
        match self.next.take() {
            Some(token) => {
                self.line += usize::from(token == Token::End);
                Ok(Some(token))
            }
            None => {
                let token = self.read()?;
                self.line += usize::from(token == Some(Token::End));
                Ok(token)
            }
        }
    }

    fn read(&mut self) -> Result<Option<Token<'a>>, String> {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\r']);
            let Some(first) = self.rest.chars().next() else { return Ok(None) };
            match first {
                '#' => {
                    let (comment, rest) = self.rest.split_at(self.rest.find('\n').unwrap_or(self.rest.len()));
                    self.handle = comment.trim_end().strip_prefix("# handle ").and_then(|n| n.parse().ok());
                    self.rest = rest;
                }
                '\\' if self.rest[1..].starts_with('\n') => self.rest = &self.rest[2..],
                '\n' => return Ok(Some(self.take(1, Token::End))),
                '{' | '}' | ';' | ',' | '(' | ')' => return Ok(Some(self.take(1, Token::Sign(first)))),
                '"' => {
                    let inner = &self.rest[1..];
                    let end = inner.find(['"', '\n']).filter(|&at| inner.as_bytes()[at] == b'"');
                    let end = end.ok_or("a quote is not closed")?;
                    return Ok(Some(self.take(end + 2, Token::Quoted(&inner[..end]))));
                }
                _ => {
                    let stops = |c: char| c.is_whitespace() || "{};,()\"#".contains(c);
                    // At least one character, so that whatever it is is passed.
                    let end = self.rest.char_indices().skip(1).find(|(_, c)| stops(*c));
                    let end = end.map_or(self.rest.len(), |(at, _)| at);
                    let word = &self.rest[..end];
                    return Ok(Some(self.take(end, Token::Word(word))));
                }
            }
        }
    }

    fn take(&mut self, length: usize, token: Token<'a>) -> Token<'a> {
        self.rest = &self.rest[length..];
        token
    }
}
