//! What a Secret says about a connection, by the keys that operators of databases write.
//!
//! One key holds a connection string (`url` and others), or each part has a key of its own. The workers get the same values by environment
//! variables and read them in the same way.

use super::{
    ConnectError, ConnectionSettings,
    parameters::{self, Parameters, invalid},
};
use crate::names::secret_key;

impl ConnectionSettings {
    /// Reads what `value` gives for keys. A connection string is completed by the parts; without one, host and user are required.
    ///
    /// # Errors
    /// `ConnectError::Invalid`, which names the key.
    pub fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, ConnectError> {
        // A file's last line end is no part of a value; blanks may be part of a password.
        let trimmed = |key: &str, text: &'a str| {
            if key == "password" { text.trim_end_matches(['\r', '\n']) } else { text.trim() }
        };
        let given = |key: &str| value(key).map(|text| trimmed(key, text)).filter(|text| !text.is_empty());
        let string = secret_key::STRINGS.into_iter().find_map(|key| given(key).map(|text| (key, text)));
        let mut parameters = match string {
            Some((key, text)) => parameters::parse(text).map_err(|error| about(key, error))?,
            None => Parameters::default(),
        };
        let mut missing = Vec::new();
        for (part, keys) in secret_key::PARTS {
            let found = keys.iter().find_map(|key| given(key).map(|text| (*key, text)));
            match found {
                Some((key, text)) if parameters.get(part).is_none() => set(&mut parameters, part, key, text)?,
                Some(_) => {}
                None if parameters.get(part).is_none() && ["host", "user"].contains(&part) => {
                    missing.push(keys.join(" or "));
                }
                None => {}
            }
        }
        if !missing.is_empty() {
            let looked = secret_key::all().collect::<Vec<_>>().join(", ");
            return Err(invalid(format!("{} is missing; these keys are looked for: {looked}", missing.join(" and "))));
        }
        let settings = Self::from_parameters(&parameters);
        settings.map_err(|error| string.map_or_else(|| error.clone(), |(key, _)| about(key, error.clone())))
    }
}

fn set(parameters: &mut Parameters, part: &str, key: &str, text: &str) -> Result<(), ConnectError> {
    if text.contains('\0') {
        return Err(invalid(format!("key {key} holds a NUL byte")));
    }
    parameters.from_url &= !matches!(part, "host" | "port");
    // An endpoint may come with its port.
    if part == "host"
        && let Some((host, port)) = text.split_once(':')
        && !port.contains(':')
    {
        parameters.set("host", host);
        parameters.set("port", port);
        return Ok(());
    }
    parameters.set(part, text);
    Ok(())
}

fn about(key: &str, error: ConnectError) -> ConnectError {
    match error {
        ConnectError::Invalid(why) => ConnectError::Invalid(format!("key {key}: {why}")),
        other => other,
    }
}
