//! Fields of a block of headers (HPACK, RFC 7541) with another value for `:authority`.

/// Index of `:authority` in the static table.
const AUTHORITY: usize = 1;
/// `:authority` as a literal, plain and by Huffman's code.
pub(super) const AUTHORITY_LITERALS: [(bool, &[u8]); 2] =
    [(false, b":authority"), (true, &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f])];

/// The fields (RFC 7541) with another value for `:authority`; none if they are malformed.
pub(super) fn rewrite(fields: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader { bytes: fields, position: 0 };
    let mut written = Vec::with_capacity(fields.len());
    while let Some(&first) = fields.get(reader.position) {
        let start = reader.position;
        let prefix = match first {
            // A field of a table; then the size of the table.
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = reader.integer(prefix)?;
        // An empty authority is in the static table.
        if first == 0x80 | AUTHORITY as u8 {
            written.push(AUTHORITY as u8);
            write_authority(0, &mut written);
            continue;
        }
        if matches!(first, 0x80.. | 0x20..0x40) {
            written.extend_from_slice(&fields[start..reader.position]);
            continue;
        }
        let is_authority = match index {
            0 => AUTHORITY_LITERALS.contains(&reader.string()?),
            index => index == AUTHORITY,
        };
        written.extend_from_slice(&fields[start..reader.position]);
        let start = reader.position;
        let (coded, value) = reader.string()?;
        // An empty one that the tables keep stays: they must agree to the byte.
        if is_authority && !(value.is_empty() && prefix == 6) {
            let length = if coded { decoded_length(value)? } else { value.len() };
            write_authority(length, &mut written);
        } else {
            written.extend_from_slice(&fields[start..reader.position]);
        }
    }
    Some(written)
}

/// A string of so many letters; one for an empty one, which is no authority either.
fn write_authority(length: usize, output: &mut Vec<u8>) {
    let length = length.max(1);
    if let Some(short) = u8::try_from(length).ok().filter(|length| *length < 0x7f) {
        output.push(short);
    } else {
        output.push(0x7f);
        let mut rest = length - 0x7f;
        while rest >= 0x80 {
            output.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        output.push((rest & 0x7f) as u8);
    }
    output.resize(output.len() + length, b'a');
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// An integer whose first byte has so many bits of it (RFC 7541, 5.1).
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(*self.bytes.get(self.position)?) & mask;
        self.position += 1;
        if value < mask {
            return Some(value);
        }
        for shift in [0, 7, 14] {
            let byte = usize::from(*self.bytes.get(self.position)?);
            self.position += 1;
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Whether a string is in Huffman's code, and its bytes.
    fn string(&mut self) -> Option<(bool, &'a [u8])> {
        let coded = *self.bytes.get(self.position)? & 0x80 != 0;
        let length = self.integer(7)?;
        let bytes = self.bytes.get(self.position..self.position.checked_add(length)?)?;
        self.position += length;
        Some((coded, bytes))
    }
}

/// How many octets have so many bits in HPACK's Huffman code (RFC 7541, appendix B). The code is canonical, so these are all
/// that is needed to tell where one ends. The mark of the end, which a string must not have, is left out.
const SYMBOLS_OF_LENGTH: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 3),
];

/// How many bytes a string in Huffman's code stands for; none if it ends within a symbol.
fn decoded_length(bytes: &[u8]) -> Option<usize> {
    let (mut symbols, mut code, mut bits) = (0, 0_u32, 0);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        (code, bits) = (code << 1 | u32::from(bit), bits + 1);
        if is_symbol(code, bits) {
            (symbols, code, bits) = (symbols + 1, 0, 0);
        } else if bits == 30 {
            return None;
        }
    }
    // The end is filled up with ones, less than a byte.
    (bits < 8 && code == (1 << bits) - 1).then_some(symbols)
}

fn is_symbol(code: u32, bits: u32) -> bool {
    let (mut first, mut before) = (0_u32, 5);
    for (length, count) in SYMBOLS_OF_LENGTH {
        first <<= length - before;
        before = length;
        if length == bits {
            return (first..first + count).contains(&code);
        }
        first += count;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_coded_strings_are_those_of_the_standards_examples() {
        // RFC 7541, appendix C.4 and C.6.
        for (coded, plain) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            assert_eq!(decoded_length(coded), Some(plain.len()), "{plain}");
        }
        assert_eq!(decoded_length(&[0xff; 4]), None);
        assert_eq!(SYMBOLS_OF_LENGTH.iter().map(|(_, count)| count).sum::<u32>(), 256);
    }
}
