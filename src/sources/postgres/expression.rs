//! An SQL expression from a spec: whether it is one expression over one row, as far as that can be told without
//! running it. The server has the last word.

use tokio_postgres::{Client, Error, types::Type};

use crate::clients::postgres::Query;

/// Why an expression over one row of a table is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ExpressionError {
    /// It is not one expression, or does more than compute.
    #[error("{0}")]
    Unsuitable(String),
    /// The server refused it.
    #[error(transparent)]
    Postgres(#[from] Error),
}

/// Checks an expression over one row of a table (quoted already): one scalar without subqueries, aggregates, window functions, sets, or functions that
/// have effects or change by themselves. Runs nothing of it.
///
/// # Errors
/// Why it is not taken.
pub async fn check_expression(client: &Client, table_sql: &str, expression: &str) -> Result<(), ExpressionError> {
    let words = words(expression).map_err(|why| ExpressionError::Unsuitable(why.to_owned()))?;
    let bare = |word: &str| words.iter().any(|found| !found.quoted && found.text == word);
    for word in ["select", "with", "values", "table"] {
        if bare(word) {
            return Err(ExpressionError::Unsuitable(format!(
                "it must be an expression over one row, without subqueries: {word:?} stands in it"
            )));
        }
    }
    // Of several functions of one name any may be meant.
    let volatile = Query::new(
        "select min(proname::text) from pg_catalog.pg_proc where proname::text = any($1::text[]) and provolatile = 'v'",
        &[Type::TEXT_ARRAY],
    );
    let called: Vec<&str> = words.iter().filter(|word| word.called).map(|word| word.text.as_str()).collect();
    if let Some(name) = volatile.row(client, &[&called]).await?.try_get::<_, Option<String>>(0)? {
        return Err(ExpressionError::Unsuitable(format!(
            "the function {name} is volatile: it may have effects, or give another answer for the same row at another time"
        )));
    }
    // Where no aggregate, window function or set is allowed, and over no row.
    let probe = format!("select ({expression})::text from {table_sql} where ({expression})::text is not null limit 0");
    client.query_typed(&probe, &[]).await?;
    Ok(())
}

#[derive(Debug, Eq, PartialEq)]
struct Word {
    /// In lower case, unless in quotes.
    text: String,
    quoted: bool,
    /// A bracket follows, as after the name of a function.
    called: bool,
}

/// The names and keywords of an expression, if it is one.
fn words(expression: &str) -> Result<Vec<Word>, &'static str> {
    let mut words: Vec<Word> = Vec::new();
    let mut depth = 0_u32;
    let mut characters = expression.chars().peekable();
    let mut after_word = false;
    while let Some(c) = characters.next() {
        if c.is_alphabetic() || c == '_' {
            let mut text: String = c.to_lowercase().collect();
            while let Some(next) = characters.next_if(|next| next.is_alphanumeric() || matches!(next, '_' | '$')) {
                text.extend(next.to_lowercase());
            }
            // There a backslash would hide the quote that ends it.
            if matches!((text.as_str(), characters.peek()), ("e", Some('\'')) | ("u", Some('&'))) {
                return Err("strings with escapes (E'…', U&'…') are not taken");
            }
            words.push(Word { text, quoted: false, called: false });
            after_word = true;
            continue;
        }
        match c {
            '\'' | '"' => {
                let text = quoted(&mut characters, c).ok_or("a quote is not closed")?;
                after_word = c == '"';
                if after_word {
                    words.push(Word { text, quoted: true, called: false });
                }
                continue;
            }
            '(' | '[' => {
                depth += 1;
                if let Some(word) = words.last_mut().filter(|_| after_word && c == '(') {
                    word.called = true;
                }
            }
            ')' | ']' => depth = depth.checked_sub(1).ok_or("a bracket is closed that was not opened")?,
            ',' if depth == 0 => return Err("it must be one expression, not a list"),
            ';' => return Err("it must be one expression, without semicolons"),
            '$' => return Err("parameters and dollar quotes are not taken"),
            '-' if characters.peek() == Some(&'-') => return Err("comments are not taken"),
            '/' if characters.peek() == Some(&'*') => return Err("comments are not taken"),
            _ => {}
        }
        after_word &= c.is_whitespace();
    }
    match (depth, words.is_empty()) {
        (1.., _) => Err("a bracket is not closed"),
        (0, true) => Err("it names no column"),
        (0, false) => Ok(words),
    }
}

/// What stands up to the closing quote, where a doubled one is one of the text.
fn quoted(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, quote: char) -> Option<String> {
    let mut text = String::new();
    loop {
        match characters.next()? {
            c if c != quote => text.push(c),
            _ if characters.next_if_eq(&quote).is_some() => text.push(quote),
            _ => return Some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_expression_is_taken_and_what_breaks_out_of_it_is_not() {
        for good in [
            "tenant",
            "mod(customer, 24)",
            "data->>'te''n;a--nt'",
            "\"odd;name\"",
            "(a + 1) % 24",
            "case when a > 1 then 'x' else 'y' end",
            "extract(year from recorded_at)",
            "(array[a, b])[1]",
        ] {
            assert!(words(good).is_ok(), "{good}");
        }
        for bad in [
            "a; drop table x",
            "a) from (select 1",
            "(a",
            "'a",
            "a -- b",
            "a /* b */",
            "$1",
            "$$a$$",
            "a, b",
            "e'\\' or 1=1 --'",
            "u&'x'",
            "",
        ] {
            assert!(words(bad).is_err(), "{bad}");
        }
        let found = words("Mod (\"Te nant\", 'x y') + a").unwrap();
        let found: Vec<(&str, bool)> = found.iter().map(|word| (word.text.as_str(), word.called)).collect();
        assert_eq!(found, [("mod", true), ("Te nant", false), ("a", false)]);
    }
}
