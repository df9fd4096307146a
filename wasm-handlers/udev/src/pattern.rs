//! A value of a rule: a glob with alternatives, as udev(7) has it, or a regular expression, as Akri's own handler takes some.

use regex_lite::Regex;

/// What a text is compared with.
#[derive(Debug)]
pub(crate) struct Pattern {
    text: String,
    regex: Option<Regex>,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        // Of one value; what is no expression is a glob only.
        let regex = Regex::new(&format!("^(?:{text})$")).ok();
        Self { text: text.to_owned(), regex }
    }

    /// As a glob, one of its alternatives.
    pub(crate) fn is_glob_of(&self, text: &str) -> bool {
        self.text.split('|').any(|glob| is_glob_of(glob, text))
    }

    /// As one glob, in which `|` is a letter.
    pub(crate) fn is_single_glob_of(&self, text: &str) -> bool {
        is_glob_of(&self.text, text)
    }

    /// As a regular expression for the whole text.
    pub(crate) fn is_regex_of(&self, text: &str) -> bool {
        self.regex.as_ref().is_some_and(|regex| regex.is_match(text))
    }

    /// One way or the other, so that nothing is lost that either finds.
    pub(crate) fn is_of(&self, text: &str) -> bool {
        self.is_glob_of(text) || self.is_regex_of(text)
    }

    /// The texts that it stands for, if they can be counted.
    pub(crate) fn literals(&self) -> Option<Vec<&str>> {
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:".contains(&byte));
        let texts: Vec<_> = self.text.split('|').collect();
        texts.iter().all(|text| is_plain(text)).then_some(texts)
    }
}

/// Whether a glob stands for a text; `|` is a letter of it.
pub(crate) fn is_glob_of(glob: &str, text: &str) -> bool {
    matches(glob.as_bytes(), text.as_bytes())
}

/// `*`, `?`, `[a-z]`, `[!a-z]` and `\` before a letter, for all of a text. The time is that of both lengths multiplied.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut at, mut rest) = (0, text);
    // Where the latest star is, and what it has left.
    let mut star: Option<(usize, &[u8])> = None;
    loop {
        if glob.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, rest));
            continue;
        }
        if let (Some(letter), Some((length, true))) = (rest.first(), glob.get(at..).and_then(|glob| one(glob, rest))) {
            at += length;
            // A question mark stands for a whole letter of more bytes than one.
            rest = &rest[if glob[at - length] == b'?' { letter_length(*letter) } else { 1 }.min(rest.len())..];
            continue;
        }
        if rest.is_empty() && at == glob.len() {
            return true;
        }
        match star {
            Some((after, [_, left @ ..])) => {
                (at, rest) = (after, left);
                star = Some((after, left));
            }
            _ => return false,
        }
    }
}

fn letter_length(first: u8) -> usize {
    match first {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    }
}

/// How long the first part of a glob is that stands for one letter, and whether it stands for this one.
fn one(glob: &[u8], text: &[u8]) -> Option<(usize, bool)> {
    let letter = *text.first()?;
    match glob {
        [] => None,
        [b'?', ..] => Some((1, true)),
        [b'\\', escaped, ..] => Some((2, *escaped == letter)),
        [b'[', rest @ ..] => {
            let (negated, set) = match rest {
                [b'!' | b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            // A bracket that comes first is one of the set; without an end it is none.
            let Some(end) = set.iter().skip(1).position(|byte| *byte == b']').map(|at| at + 1) else {
                return Some((1, letter == b'['));
            };
            let (mut inside, mut set, length) = (false, &set[..end], glob.len() - set.len() + end + 1);
            while let [first, rest @ ..] = set {
                (inside, set) = match rest {
                    [b'-', last, rest @ ..] => (inside || (*first..=*last).contains(&letter), rest),
                    rest => (inside || *first == letter, rest),
                };
            }
            Some((length, inside != negated))
        }
        [plain, ..] => Some((1, *plain == letter)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_those_of_udev() {
        for (glob, yes, no) in [
            ("video*", "video10", "vid"),
            ("video[0-9]*", "video0", "videox"),
            ("usb|video4linux", "usb", "usb|video4linux"),
            ("04?8", "04a8", "048"),
            ("a[!b]c", "axc", "abc"),
            ("[]x]", "]", "y"),
            ("a[", "a[", "a"),
            ("*foo*bar", "xfooyfoobar", "xfoobary"),
            ("?", "é", "éé"),
            ("\\*", "*", "x"),
            ("", "", "x"),
            ("*", "", "\0never"),
        ] {
            assert!(Pattern::new(glob).is_glob_of(yes), "{glob} of {yes}");
            assert!(no.starts_with('\0') || !Pattern::new(glob).is_glob_of(no), "{glob} of {no}");
        }
        let long = "a".repeat(5000);
        assert!(!Pattern::new(&"*a".repeat(60)).is_glob_of(&format!("{long}b")));
    }

    #[test]
    fn what_native_takes_as_an_expression_is_one_too() {
        assert!(Pattern::new("04?8").is_of("048") && Pattern::new("04?8").is_of("04a8"));
        assert!(Pattern::new("event[0-9]+").is_of("event12"));
        assert!(Pattern::new("*").is_of("anything"), "no expression, and a glob");
        assert!(!Pattern::new("video").is_of("video0"));
    }
}
