//! Names of tables as a spec writes them.

/// The names of a table as the spec writes it: the table's, or its schema's and the table's. One in double quotes may hold dots, and quotes twice.
pub fn table_parts(table: &str) -> Vec<String> {
    let (mut parts, mut part, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = table.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(std::mem::take(&mut part)),
            other => part.push(other),
        }
    }
    parts.push(part);
    parts
}

/// One name as [`table_parts`] reads it.
pub fn table_part(name: &str) -> String {
    if name.contains(['.', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_one_name_or_two_and_a_dot_in_a_name_is_quoted() {
        for (table, parts) in [
            ("events", vec!["events"]),
            ("event-store.events", vec!["event-store", "events"]),
            ("événements", vec!["événements"]),
            ("\"event.store\".my events", vec!["event.store", "my events"]),
            ("\"a\"\"b\"", vec!["a\"b"]),
        ] {
            assert_eq!(table_parts(table), parts, "{table}");
            let written: Vec<String> = parts.iter().map(|part| table_part(part)).collect();
            assert_eq!(table_parts(&written.join(".")), parts, "{table}");
        }
    }
}
