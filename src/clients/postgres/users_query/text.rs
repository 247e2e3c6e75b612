//! What can be told of a query by its text: whether it is one query, and which functions it calls. Pure. The server has the last word.

/// A query that may be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Text {
    /// Without the semicolon at its end.
    pub(super) sql: String,
    /// The names that a bracket follows, in lower case unless they were quoted: functions, among others.
    pub(super) called: Vec<String>,
}

/// Reads a query.
///
/// # Errors
/// Why it is not one.
pub(super) fn read(sql: &str) -> Result<Text, &'static str> {
    let mut rest = sql;
    let (mut words, mut called) = (0, Vec::new());
    // The last word, while nothing but blanks has followed it.
    let mut word: Option<String> = None;
    let mut end = None;
    while let Some(c) = rest.chars().next() {
        let here = sql.len() - rest.len();
        let length = skipped(rest)?;
        let (token, after) = rest.split_at(length);
        let blank = c.is_whitespace() || token.starts_with("--") || token.starts_with("/*");
        rest = after;
        if blank {
            continue;
        }
        if end.is_some() {
            return Err("it must be one query: another statement follows after the semicolon");
        }
        match c {
            ';' => end = Some(here),
            '(' => called.extend(word.take()),
            '"' => word = Some(token[1..token.len() - 1].replace("\"\"", "\"")),
            _ if is_word(c) => {
                let text = token.to_lowercase();
                let begins = ["select", "with", "values", "table"].contains(&text.as_str());
                if words == 0 && !begins {
                    return Err("it must be a query, which begins with select or with");
                }
                words += 1;
                word = Some(text);
            }
            _ => word = None,
        }
    }
    if words == 0 {
        return Err("it is empty: write a query, such as select count(*) as pending from outbox where sent_at is null");
    }
    Ok(Text { sql: sql[..end.unwrap_or(sql.len())].to_owned(), called })
}

fn is_word(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

/// The length of what stands at the beginning of this text, which is not empty: a word, a text or name in quotes, a comment, or one character.
fn skipped(rest: &str) -> Result<usize, &'static str> {
    let first = rest.chars().next().unwrap_or_default();
    let lower: String = rest.chars().take(3).flat_map(char::to_lowercase).collect();
    if lower.starts_with("u&'") || lower.starts_with("u&\"") {
        return Err("strings and names with escapes (U&'…') are not taken");
    }
    if lower.starts_with("e'") {
        return quoted(&rest[1..], '\'', true).map(|length| length + 1).ok_or("a quote is not closed");
    }
    if rest.starts_with("--") {
        // The server takes either for the end of a line.
        return Ok(rest.find(['\n', '\r']).unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return comment(rest).ok_or("a comment is not closed");
    }
    match first {
        '\'' | '"' => quoted(rest, first, false).ok_or("a quote is not closed"),
        '$' => match dollar_tag(rest) {
            Some(tag) => {
                let inner = &rest[tag.len()..];
                inner.find(tag).map(|at| tag.len() * 2 + at).ok_or("a quote is not closed")
            }
            None => Err("parameters ($1) are not taken"),
        },
        _ if is_word(first) => {
            let other = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$'));
            Ok(rest.find(other).unwrap_or(rest.len()))
        }
        // A number may not run into a name: 1e5, 0x10.
        _ if first.is_ascii_digit() => {
            let other = |c: char| !(c.is_alphanumeric() || c == '_');
            Ok(rest.find(other).unwrap_or(rest.len()))
        }
        other => Ok(other.len_utf8()),
    }
}

/// The length of a text in quotes, where a doubled quote is one of the text.
fn quoted(rest: &str, quote: char, escapes: bool) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if escapes && c == '\\' {
            characters.next()?;
        } else if c == quote && characters.next_if(|(_, next)| *next == quote).is_none() {
            return Some(at + c.len_utf8());
        }
    }
    None
}

/// The length of a comment, which may hold others.
fn comment(rest: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_u32, 0);
    while at < rest.len() {
        let here = rest.get(at..)?;
        if here.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if here.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += here.chars().next()?.len_utf8();
        }
    }
    None
}

/// `$$` or `$tag$` at the beginning.
fn dollar_tag(rest: &str) -> Option<&str> {
    let length = rest.get(1..)?.find('$')?;
    let tag = rest.get(1..=length)?;
    let starts = tag.chars().next().is_none_or(is_word);
    (starts && tag.chars().all(|c| c.is_alphanumeric() || c == '_')).then(|| &rest[..length + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_query_is_taken_and_the_semicolon_at_its_end_is_dropped() {
        for good in [
            "select count(*) from outbox where sent_at is null",
            "  WITH a AS (select 1) select * from a",
            "-- what waits\nselect 'a;b', \"c;d\", e'\\';', $$;$$, $x$;$$;$x$ /* ; /* ; */ ; */",
            "(select 1)",
            "values (1)",
            "select 1e5, a1 from t",
        ] {
            assert_eq!(read(good).unwrap().sql, good, "{good}");
            let ended = format!("{good} ; -- end\n");
            assert_eq!(read(&ended).unwrap().sql, format!("{good} "), "{ended}");
        }
    }

    #[test]
    fn what_is_no_query_or_more_than_one_is_refused() {
        for bad in [
            "",
            " ; ",
            "-- select 1",
            "delete from outbox",
            "set statement_timeout = 0",
            "listen x",
            "explain select 1",
            "copy t to program 'x'",
            "select 1; drop table outbox",
            "select 1;;",
            "select 'a",
            "select \"a",
            "select /* a",
            "select $$a",
            "select $1",
            "select u&\"d\\0061t\"(1)",
            "select 1 --\r; drop table outbox",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn functions_are_found_however_they_are_written() {
        let called = |sql: &str| read(sql).unwrap().called;
        assert_eq!(called("select Pg_Sleep (1), \"pg_sleep\"(2), pg_catalog . pg_sleep /* ( */ (3)"), ["pg_sleep"; 3]);
        assert_eq!(called("select 'pg_sleep(1)', a + (b), \"x\"\"y\"(1)"), ["x\"y"]);
        assert_eq!(called("select pg_sleep -- (\n(1)"), ["pg_sleep"]);
        assert_eq!(called("select 1 -- a\r + pg_sleep(1)"), ["pg_sleep"], "a line ends there, too");
    }
}
