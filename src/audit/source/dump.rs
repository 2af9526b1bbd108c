//! Text that somebody saved as a source: what the backends read, and podweir's own JSON.

use serde_json::Value;

use crate::audit::schema;
use crate::backend::dump::{DumpContent, Dumps};
use crate::backend::limit::{self, Most};

pub use crate::backend::dump::Text;

use super::{Source, SourceError};

/// Reads texts that together are one source.
///
/// # Errors
///
/// A text is in no known notation, is not understood, or says itself that it leaves something out.
pub fn read(texts: &[Text]) -> Result<Source, SourceError> {
    for text in texts {
        limit::check(&text.bytes, Most::TO_UNDERSTAND)
            .map_err(|many| SourceError::TooMany(format!("{}: {many}", text.name)))?;
    }
    let mut dumps = Dumps::default();
    for text in texts {
        match DumpContent::of(text)? {
            DumpContent::Json(value) if value.get("format").and_then(Value::as_str) == Some(schema::FORMAT) => {
                if texts.len() > 1 {
                    let problem = "podweir's JSON holds everything: it cannot be put together with other dumps";
                    return Err(text.error(problem.into()).into());
                }
                return schema::read(&value).map_err(|problem| text.error(problem).into());
            }
            content => dumps.add(text, content)?,
        }
    }
    Ok(Source::of_listing(dumps.finish()?))
}
