//! What a node has for a value (DataValue and Variant: part 6 of the specification, 5.2.2.16 and 17), as text.

use jiff::Timestamp;
use opcua_codec::{Malformed, Reader, is_bad, status};
use std::ops::RangeInclusive;

/// Items of an array that are shown.
const MOST_SHOWN: usize = 16;

/// Bits of a Variant's encoding; the others are the number of its type.
const ARRAY: u8 = 0x80;
const DIMENSIONS: u8 = 0x40;
/// The types that are read: not ExpandedNodeId, DataValue, Variant and DiagnosticInfo.
const KINDS: [RangeInclusive<u8>; 2] = [NOTHING..=17, 19..=22];
const NOTHING: u8 = 0;
/// Ticks of a DateTime in a second, and seconds from its beginning to that of Unix.
const TICKS: i64 = 10_000_000;
const SECONDS_TO_1970: i64 = 11_644_473_600;

/// Reads a DataValue.
pub fn data_value(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let mask = reader.u8()?;
    let value = if mask & 1 != 0 { Some(variant(reader)?) } else { None };
    let value = match value {
        // Where it ends is not known, and so not what comes after it.
        Some(Read::Unknown(kind)) => return Ok(format!("a value of type {kind}")),
        Some(Read::Value(text)) => Some(text),
        None => None,
    };
    let code = if mask & 2 != 0 { reader.u32()? } else { 0 };
    // Times are not asked for.
    Ok(match (value, code) {
        (Some(value), 0) => value,
        (Some(value), code) if !is_bad(code) => format!("{value}, {}", status(code, "")),
        (None, 0) => "no value".to_owned(),
        (_, code) => status(code, ""),
    })
}

/// What a Variant is.
enum Read {
    Value(String),
    /// Of a type that is not known here.
    Unknown(u8),
}

fn variant(reader: &mut Reader<'_>) -> Result<Read, Malformed> {
    let encoding = reader.u8()?;
    let kind = encoding & 0x3f;
    let is_array = encoding & ARRAY != 0;
    // An array of nothing has items without bytes, as many as it likes.
    if !KINDS.iter().any(|known| known.contains(&kind)) || is_array && kind == NOTHING {
        return Ok(Read::Unknown(kind));
    }
    if !is_array {
        return scalar(reader, kind).map(Read::Value);
    }
    let mut shown = Vec::new();
    let items = reader.array(|reader| {
        let item = scalar(reader, kind)?;
        if shown.len() < MOST_SHOWN {
            shown.push(item);
        }
        Ok(())
    })?;
    let shown = shown.join(", ");
    let mut text = match items.len().checked_sub(MOST_SHOWN) {
        None | Some(0) => format!("[{shown}]"),
        Some(more) => format!("[{shown}, and {more} more]"),
    };
    if encoding & DIMENSIONS != 0 {
        let dimensions = reader.array(Reader::u32)?;
        let dimensions = dimensions.iter().map(u32::to_string).collect::<Vec<_>>().join(" x ");
        text = format!("{text}, {dimensions}");
    }
    Ok(Read::Value(text))
}

fn scalar(reader: &mut Reader<'_>, kind: u8) -> Result<String, Malformed> {
    Ok(match kind {
        NOTHING => "nothing".to_owned(),
        1 => (reader.u8()? != 0).to_string(),
        2 => i8::from_le_bytes(reader.number()?).to_string(),
        3 => reader.u8()?.to_string(),
        4 => i16::from_le_bytes(reader.number()?).to_string(),
        5 => u16::from_le_bytes(reader.number()?).to_string(),
        6 => i32::from_le_bytes(reader.number()?).to_string(),
        7 => reader.u32()?.to_string(),
        8 => i64::from_le_bytes(reader.number()?).to_string(),
        9 => u64::from_le_bytes(reader.number()?).to_string(),
        10 => f32::from_le_bytes(reader.number()?).to_string(),
        11 => f64::from_le_bytes(reader.number()?).to_string(),
        // One line is one value.
        12 | 16 => format!("{:?}", reader.string()?),
        13 => time(i64::from_le_bytes(reader.number()?)),
        14 => format!("GUID {:02x?}", reader.bytes(16)?),
        15 => format!("{} bytes", reader.byte_string()?.len()),
        17 => format!("a NodeId of {} bytes", reader.node_id_bytes()?.len()),
        19 => status(reader.u32()?, ""),
        20 => {
            let namespace = reader.u16()?;
            format!("{namespace}:{:?}", reader.string()?)
        }
        21 => format!("{:?}", reader.localized_text()?),
        22 => {
            reader.skip_extension_object()?;
            "a structure".to_owned()
        }
        _ => return Err(Malformed("a value has a type that is not known")),
    })
}

/// A DateTime: hundreds of nanoseconds since 1601.
fn time(ticks: i64) -> String {
    let seconds = ticks.div_euclid(TICKS) - SECONDS_TO_1970;
    let nanoseconds = i32::try_from(ticks.rem_euclid(TICKS) * 100).unwrap_or_default();
    Timestamp::new(seconds, nanoseconds).map_or_else(|_| format!("{ticks} ticks since 1601"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> Result<String, Malformed> {
        data_value(&mut Reader(bytes))
    }

    #[test]
    fn values_are_shown_with_their_status() {
        let double = [&[1, 11][..], &42.5f64.to_le_bytes()].concat();
        assert_eq!(shown(&double).unwrap(), "42.5");
        assert_eq!(shown(&[1, 1, 1]).unwrap(), "true");
        assert_eq!(shown(&[1, 6, 0xff, 0xff, 0xff, 0xff]).unwrap(), "-1");
        assert_eq!(shown(&[1, 12, 3, 0, 0, 0, b'a', b'\n', b'b']).unwrap(), "\"a\\nb\"");
        assert_eq!(shown(&[1, 0x83, 2, 0, 0, 0, 7, 8]).unwrap(), "[7, 8]");
        assert_eq!(shown(&[2, 0, 0, 0x34, 0x80]).unwrap(), "BadNodeIdUnknown (status 0x80340000)");
        assert_eq!(shown(&[3, 3, 7, 0, 0, 0x92, 0x40]).unwrap(), "7, status 0x40920000");
        assert_eq!(shown(&[0]).unwrap(), "no value");
        // A matrix: its items, then its dimensions; a status after that.
        let matrix = [&[3, 0xc3, 4, 0, 0, 0, 1, 2, 3, 4][..], &[2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0], &[0; 4]].concat();
        assert_eq!(shown(&matrix).unwrap(), "[1, 2, 3, 4], 2 x 2");
        // A Variant within one, and a structure of diagnostics: nobody knows where they end.
        assert_eq!(shown(&[3, 24, 1, 1, 0, 0, 0, 0x80]).unwrap(), "a value of type 24");
        assert_eq!(shown(&[3, 0x80 | 25, 1, 0, 0, 0, 0xff]).unwrap(), "a value of type 25");
        assert_eq!(shown(&[1, 0x80, 255, 255, 0, 0]).unwrap(), "a value of type 0");
        let many = [&[1, 0x83, 20, 0, 0, 0][..], &[0; 20]].concat();
        assert!(shown(&many).unwrap().ends_with("0, and 4 more]"));
    }

    #[test]
    fn values_that_are_none_are_refused() {
        for bytes in [&[][..], &[1], &[1, 11, 0], &[1, 12, 255, 255, 255, 127], &[1, 0x83, 255, 255, 255, 127, 0]] {
            assert!(shown(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let ticks = |unix: i64| (unix + SECONDS_TO_1970) * TICKS;
        assert_eq!(time(ticks(0)), "1970-01-01T00:00:00Z");
        assert_eq!(time(ticks(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(time(ticks(1_795_824_001)), "2026-11-28T00:00:01Z");
        assert_eq!(time(0), "1601-01-01T00:00:00Z");
    }
}
