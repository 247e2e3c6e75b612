//! Finds the named parameters in a handler's SQL and puts numbered, typed placeholders in their place.
//!
//! Reads SQL only as far as necessary to distinguish a parameter from text, a comment or a cast; the server checks whether the statement makes sense.
//! Nothing from an event ever becomes part of a statement.

use std::fmt;

/// What a handler may ask of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parameter {
    /// `:position`, bigint.
    Position,
    /// `:type`, text.
    Type,
    /// `:stream`, text.
    Stream,
    /// `:recorded_at`, timestamptz.
    RecordedAt,
    /// `:data`, jsonb.
    Data,
}

impl Parameter {
    /// Every parameter, in the order in which documentation lists them.
    pub const ALL: [Self; 5] = [Self::Position, Self::Type, Self::Stream, Self::RecordedAt, Self::Data];

    /// The name after the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Position => "position",
            Self::Type => "type",
            Self::Stream => "stream",
            Self::RecordedAt => "recorded_at",
            Self::Data => "data",
        }
    }

    /// The SQL type that it is bound as.
    pub fn sql_type(self) -> &'static str {
        match self {
            Self::Position => "bigint",
            Self::Type | Self::Stream => "text",
            Self::RecordedAt => "timestamptz",
            Self::Data => "jsonb",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|parameter| parameter.name() == name)
    }
}

/// A statement that the server can prepare.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Statement {
    /// With `$1`, `$2`, … in place of names.
    pub text: String,
    /// What to bind to them, in order.
    pub parameters: Vec<Parameter>,
}

/// Why a handler is no statement.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SqlError {
    /// There is no such parameter.
    #[error(
        "there is no parameter :{0}: an event has {known} (write a cast as ::{0}, and an array slice with a blank after its colon)",
        known = KnownParameters
    )]
    UnknownParameter(String),
    /// `$1` would be confused with what takes the place of names.
    #[error("{0} has no meaning here: name what you want of the event, one of {known}", known = KnownParameters)]
    NumberedParameter(String),
    /// More than one statement.
    #[error(
        "it holds more than one statement: write one, with common table expressions (with … as (insert …)) or a function where it takes several"
    )]
    SeveralStatements,
    /// Nothing but blanks and comments.
    #[error("it holds no statement")]
    Empty,
    /// It would end the transaction that keeps effects and checkpoint together.
    #[error(
        "{0} is not allowed: effects and checkpoint are committed in one transaction, which the worker begins and ends"
    )]
    TransactionControl(String),
    /// A string, a quoted name or a comment goes on to the end.
    #[error("{0} has no end")]
    Unterminated(&'static str),
}

struct KnownParameters;

impl fmt::Display for KnownParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, parameter) in Parameter::ALL.into_iter().enumerate() {
            let before = if index == 0 { "" } else { ", " };
            write!(f, "{before}:{}", parameter.name())?;
        }
        Ok(())
    }
}

const TRANSACTION_CONTROL: [&str; 11] = [
    "abort",
    "begin",
    "commit",
    "deallocate",
    "discard",
    "end",
    "prepare",
    "release",
    "rollback",
    "savepoint",
    "start",
];

/// The word of a script that ends the transaction that it runs in, or begins another: one that its first word does not tell is not found.
pub(super) fn ends_transaction(script: &str) -> Option<String> {
    let mut lexer = Lexer { rest: script, brackets: 0, after_operand: false };
    let (mut first, mut atomic) = (true, false);
    // What cannot be read is left to the server.
    while let Ok(Some(token)) = lexer.next() {
        match token {
            Token::Blank(_) => continue,
            Token::Semicolon => first = true,
            Token::Word(word) => {
                let word = word.to_ascii_lowercase();
                // The body of a function: begin atomic … end.
                atomic |= word == "atomic";
                let ends = ["abort", "begin", "commit", "rollback", "start"].contains(&word.as_str());
                if first && (ends || (word == "end" && !atomic)) {
                    return Some(word);
                }
                first = false;
            }
            Token::Parameter(_) | Token::Other(_) => first = false,
        }
    }
    None
}

/// Reads one statement.
///
/// # Errors
/// When it is not exactly one statement, controls the transaction, or names a parameter that does not exist.
pub fn parse(sql: &str) -> Result<Statement, SqlError> {
    let mut lexer = Lexer { rest: sql, brackets: 0, after_operand: false };
    let mut statement = Statement { text: String::with_capacity(sql.len() + 32), parameters: Vec::new() };
    let (mut begun, mut ended) = (false, false);
    while let Some(token) = lexer.next()? {
        if !matches!(token, Token::Blank(_) | Token::Semicolon) {
            if ended {
                return Err(SqlError::SeveralStatements);
            }
            if let Token::Word(word) = token
                && !begun
                && TRANSACTION_CONTROL.contains(&word.to_ascii_lowercase().as_str())
            {
                return Err(SqlError::TransactionControl(word.to_ascii_lowercase()));
            }
            begun = true;
        }
        match token {
            Token::Semicolon => ended |= begun,
            Token::Blank(text) | Token::Word(text) | Token::Other(text) => statement.text.push_str(text),
            Token::Parameter(name) => {
                let parameter = Parameter::named(name).ok_or_else(|| SqlError::UnknownParameter(name.to_owned()))?;
                place(&mut statement, parameter);
            }
        }
    }
    if begun { Ok(statement) } else { Err(SqlError::Empty) }
}

fn place(statement: &mut Statement, parameter: Parameter) {
    let known = statement.parameters.iter().position(|other| *other == parameter);
    let number = known.unwrap_or_else(|| {
        statement.parameters.push(parameter);
        statement.parameters.len() - 1
    });
    // In parentheses, so that neither a subscript nor a longer type name that follows is taken for part of the cast.
    statement.text.push_str(&format!("(${}::{})", number + 1, parameter.sql_type()));
}

#[derive(Clone, Copy, Debug)]
enum Token<'a> {
    /// White space or a comment.
    Blank(&'a str),
    /// A keyword or an unquoted name.
    Word(&'a str),
    /// `:name`, without the colon.
    Parameter(&'a str),
    Semicolon,
    /// Anything else: strings, quoted names, numbers, operators.
    Other(&'a str),
}

struct Lexer<'a> {
    rest: &'a str,
    /// How many square brackets are open.
    brackets: u32,
    /// The last token that is not blank could be the end of a value.
    after_operand: bool,
}

fn begins_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn continues_word(c: char) -> bool {
    begins_word(c) || c.is_ascii_digit() || c == '$'
}

/// The length of the word that `text` begins with.
fn word_length(text: &str) -> usize {
    if text.starts_with(begins_word) { text.find(|c| !continues_word(c)).unwrap_or(text.len()) } else { 0 }
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, SqlError> {
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let token = match first {
            c if c.is_whitespace() => Token::Blank(self.take_while(char::is_whitespace)),
            '-' if self.rest.starts_with("--") => Token::Blank(self.take_while(|c| c != '\n')),
            '/' if self.rest.starts_with("/*") => Token::Blank(self.comment()?),
            '\'' => Token::Other(self.quoted(0, '\'', false, "a string")?),
            '"' => Token::Other(self.quoted(0, '"', false, "a quoted name")?),
            '$' => self.dollar()?,
            ';' => {
                self.take(1);
                Token::Semicolon
            }
            ':' => self.colon(),
            c if begins_word(c) => self.word()?,
            c if c.is_ascii_digit() => Token::Other(self.take_while(|c| continues_word(c) || c == '.')),
            c => {
                match c {
                    '[' => self.brackets += 1,
                    ']' => self.brackets = self.brackets.saturating_sub(1),
                    _ => {}
                }
                Token::Other(self.take(c.len_utf8()))
            }
        };
        match token {
            Token::Blank(_) => {}
            Token::Word(_) | Token::Parameter(_) => self.after_operand = true,
            Token::Semicolon => self.after_operand = false,
            Token::Other(text) => {
                self.after_operand = text.ends_with(|c: char| continues_word(c) || "'\")].".contains(c));
            }
        }
        Ok(Some(token))
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, holds: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !holds(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    /// Comments of SQL nest.
    fn comment(&mut self) -> Result<&'a str, SqlError> {
        let bytes = self.rest.as_bytes();
        let (mut depth, mut at) = (0_u32, 0);
        while at < bytes.len() {
            match bytes.get(at..at + 2) {
                Some(b"/*") => (depth, at) = (depth + 1, at + 2),
                Some(b"*/") => (depth, at) = (depth - 1, at + 2),
                _ => at += 1,
            }
            if depth == 0 {
                return Ok(self.take(at));
            }
        }
        Err(SqlError::Unterminated("a comment"))
    }

    /// A string or quoted name whose quote stands at `start`. A doubled quote needs no care: it ends one and begins another.
    fn quoted(&mut self, start: usize, quote: char, escapes: bool, what: &'static str) -> Result<&'a str, SqlError> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip_while(|(at, _)| *at <= start) {
            match c {
                _ if escaped => escaped = false,
                '\\' if escapes => escaped = true,
                c if c == quote => return Ok(self.take(at + quote.len_utf8())),
                _ => {}
            }
        }
        Err(SqlError::Unterminated(what))
    }

    fn word(&mut self) -> Result<Token<'a>, SqlError> {
        let length = word_length(self.rest);
        let escapes = self.rest[..length].eq_ignore_ascii_case("e") && self.rest[length..].starts_with('\'');
        if escapes {
            return Ok(Token::Other(self.quoted(length, '\'', true, "a string")?));
        }
        Ok(Token::Word(self.take(length)))
    }

    fn dollar(&mut self) -> Result<Token<'a>, SqlError> {
        let after = &self.rest[1..];
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            return Err(SqlError::NumberedParameter(self.rest[..=digits].to_owned()));
        }
        // A tag is a word without a dollar sign.
        let tag = if after.starts_with(begins_word) {
            after.find(|c| c == '$' || !continues_word(c)).unwrap_or(after.len())
        } else {
            0
        };
        if !after[tag..].starts_with('$') {
            return Ok(Token::Other(self.take(1)));
        }
        let delimiter = &self.rest[..tag + 2];
        let body = &self.rest[delimiter.len()..];
        let end = body.find(delimiter).ok_or(SqlError::Unterminated("a dollar-quoted string"))?;
        let length = delimiter.len() + end + delimiter.len();
        Ok(Token::Other(self.take(length)))
    }

    fn colon(&mut self) -> Token<'a> {
        for operator in ["::", ":="] {
            if self.rest.starts_with(operator) {
                return Token::Other(self.take(operator.len()));
            }
        }
        let length = word_length(&self.rest[1..]);
        let name = &self.rest[1..=length];
        // `[low:high]`: a colon after a value can only be a slice's, and one before an unknown name is taken for one too.
        let slice = self.brackets > 0 && (self.after_operand || Parameter::named(name).is_none());
        if length == 0 || slice {
            return Token::Other(self.take(1));
        }
        self.take(1 + length);
        Token::Parameter(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(sql: &str) -> String {
        parse(sql).unwrap_or_else(|error| panic!("{sql}: {error}")).text
    }

    #[test]
    fn names_become_typed_placeholders() {
        let statement =
            parse("insert into t values (:data->>'id', :position, :type, :stream, :recorded_at, :data)").unwrap();
        assert_eq!(
            statement.text,
            "insert into t values (($1::jsonb)->>'id', ($2::bigint), ($3::text), ($4::text), ($5::timestamptz), ($1::jsonb))"
        );
        use Parameter::{Data, Position, RecordedAt, Stream, Type};
        assert_eq!(statement.parameters, [Data, Position, Type, Stream, RecordedAt]);
    }

    #[test]
    fn what_only_looks_like_a_parameter_is_left_alone() {
        for sql in [
            "select ':data'",
            "select 'it''s :data'",
            "select e'\\':data'",
            "select E'\\\\' || ':nothing'",
            "select '\\' || ':nothing'",
            "select \":data\"",
            "select \"a\"\":data\"",
            "select $$ :data $$",
            "select $tag$ :data $$ :nothing $tag$",
            "select 1 -- :nothing",
            "select /* :nothing /* :nothing */ :nothing */ 1",
            "select x::data, 'a'::text::jsonb from t",
            "select f(a := 1, b:=2)",
            "select a[1:2], a[:2], a[1:], a[lo:hi], a[1:position], a[f(x):data], a[:hi]",
            "select a$1, \u{e4}$data$ from t",
            "select u&'d\\0061t :data', b'01', x'1F'",
            "select 1.5e3, 1_000, .5",
        ] {
            assert_eq!(parse(sql), Ok(Statement { text: sql.to_owned(), parameters: vec![] }), "{sql}");
        }
    }

    #[test]
    fn parameters_are_found_next_to_anything() {
        for (sql, expected) in [
            (":data::text", "($1::jsonb)::text"),
            ("f(:data)", "f(($1::jsonb))"),
            ("select(:data['a'])", "select(($1::jsonb)['a'])"),
            ("'a'||:type", "'a'||($1::text)"),
            ("1-:position--:x", "1-($1::bigint)--:x"),
            ("a[:position]", "a[($1::bigint)]"),
            ("a[1: :position]", "a[1: ($1::bigint)]"),
            ("array[:position, :position + 1]", "array[($1::bigint), ($1::bigint) + 1]"),
            ("x=e'\\''||:type", "x=e'\\''||($1::text)"),
            ("x=$q$'$q$||:type", "x=$q$'$q$||($1::text)"),
            (":data /* it's */ ->> 'x'", "($1::jsonb) /* it's */ ->> 'x'"),
        ] {
            assert_eq!(text(sql), expected);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_together_with_the_known_ones() {
        let error = parse("insert into t values (:id)").unwrap_err();
        assert_eq!(error, SqlError::UnknownParameter("id".to_owned()));
        let message = error.to_string();
        for part in [":id", ":position, :type, :stream, :recorded_at, :data"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(parse("select :Data"), Err(SqlError::UnknownParameter("Data".to_owned())));
        assert_eq!(parse("select :data_id"), Err(SqlError::UnknownParameter("data_id".to_owned())));
        assert_eq!(parse("select $1"), Err(SqlError::NumberedParameter("$1".to_owned())));
    }

    #[test]
    fn exactly_one_statement_is_taken_and_a_last_semicolon_forgiven() {
        assert_eq!(text("select 1; -- done\n;"), "select 1 -- done\n");
        assert_eq!(text("select ';'"), "select ';'");
        assert_eq!(parse("select 1; select 2"), Err(SqlError::SeveralStatements));
        for empty in ["", " ;", "-- nothing", "/* nothing */"] {
            assert_eq!(parse(empty), Err(SqlError::Empty), "{empty}");
        }
    }

    #[test]
    fn only_the_worker_ends_the_transaction() {
        for sql in ["COMMIT", " /* */ rollback", "begin", "prepare transaction 'x'"] {
            assert!(matches!(parse(sql), Err(SqlError::TransactionControl(_))), "{sql}");
        }
        assert!(parse("select 1 as commit").is_ok());
    }

    #[test]
    fn a_script_that_ends_its_transaction_is_found() {
        for (script, expected) in [
            ("create table a (n int); COMMIT; create table b (n int)", Some("commit")),
            ("begin; create table a (n int); end", Some("begin")),
            ("/* ; */ -- commit;\n Rollback", Some("rollback")),
            ("create table a (n int) ; end", Some("end")),
            ("create table commit (n int); insert into t values ('; commit;')", None),
            ("do $$ begin perform 1; commit; end $$", None),
            ("create function f() returns int begin atomic select 1; end; create table t (n int)", None),
            ("", None),
        ] {
            assert_eq!(ends_transaction(script).as_deref(), expected, "{script}");
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        for sql in ["select 'a", "select \"a", "select $x$ a $$", "select /* /* */", "select e'a\\'"] {
            assert!(matches!(parse(sql), Err(SqlError::Unterminated(_))), "{sql}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_quoted_text_always_survives(sql in "\\PC{0,60}") {
            let _ = parse(&sql);
            let quoted = format!("select '{}'", sql.replace('\'', "''"));
            prop_assert_eq!(text(&quoted), quoted);
        }
    }
}
