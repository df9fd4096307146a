/// A text that may be a guest's words, for a log or a message: its first `most` letters, in one line and without what a terminal
/// takes for an order.
pub fn one_line(text: &str, most: usize) -> String {
    text.chars().take(most).flat_map(char::escape_debug).collect::<String>().replace("\\\"", "\"")
}
