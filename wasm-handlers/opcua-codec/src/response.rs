//! What servers answer, as far as the handler and the broker read the same.

use crate::{Broken, Malformed, Reader, is_bad, status};

/// Encoding of a response that says that a request failed.
const SERVICE_FAULT: u32 = 397;

/// What a response to this request says, from behind its header on, if it has this encoding.
pub fn response<'a>(request: &str, encoding: u32, message: &'a [u8]) -> Result<Reader<'a>, Broken> {
    let mut reader = Reader(message);
    let found = reader.node_id()?;
    let code = reader.response_header()?;
    if found == Some(SERVICE_FAULT) || is_bad(code) {
        return Err(Broken::Refused(format!("{request} failed: {}", status(code, ""))));
    }
    if found != Some(encoding) {
        return Err(Broken::Malformed("it answers something else than what was asked"));
    }
    Ok(reader)
}

/// What an application says of itself (ApplicationDescription: part 4, 7.2), as far as anybody here wants to know it.
pub struct Description {
    pub name: String,
    /// The number of its type.
    pub kind: u32,
    pub urls: Vec<String>,
}

impl Description {
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        // Its URI and its product's.
        reader.string()?;
        reader.string()?;
        let (name, kind) = (reader.localized_text()?, reader.u32()?);
        // A gateway and a profile.
        reader.string()?;
        reader.string()?;
        Ok(Self { name, kind, urls: reader.array(Reader::string)? })
    }
}
