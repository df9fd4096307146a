/// A text that may be a guest's words, for a log or a message: its first `most` letters, in one line and without what a terminal
/// takes for an order.
pub fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for letter in text.chars().take(most) {
        match letter {
            '"' | '\'' | '\\' => line.push(letter),
            _ => line.extend(letter.escape_debug()),
        }
    }
    line
}
