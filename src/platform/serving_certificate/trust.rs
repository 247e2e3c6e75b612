//! Which authorities an APIService has to trust, so that no read fails while the authority changes. Pure.

/// The most certificates to write: those that other replicas have left there must not accumulate.
const MOST: usize = 4;

/// The certificates in a PEM text.
pub(super) fn certificates(pem: &str) -> Vec<&str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let until_end = |part: &&'_ str| part.contains(BEGIN);
    let whole = pem.split_inclusive(END).filter(until_end);
    whole.filter_map(|part| part.find(BEGIN).map(|begin| &part[begin..])).filter(|one| one.ends_with(END)).collect()
}

/// The PEM text to write instead of `held`; `None` if `held` is right. `needed` are the authorities that a replica serves with or is about to. While
/// `lingering`, another replica may serve with an authority that this one does not know any more, or not yet: no authority is removed.
pub(super) fn ca_bundle(held: &str, needed: &[&str], lingering: bool) -> Option<String> {
    let held = certificates(held);
    let mut wanted: Vec<&str> = Vec::new();
    for one in needed.iter().flat_map(|pem| certificates(pem)) {
        if !wanted.contains(&one) {
            wanted.push(one);
        }
    }
    let others: Vec<&str> = held.iter().copied().filter(|one| !wanted.contains(one)).collect();
    if wanted.iter().all(|one| held.contains(one)) && (others.is_empty() || lingering) {
        return None;
    }
    if lingering {
        wanted.extend(others);
        wanted.truncate(MOST);
    }
    Some(wanted.iter().map(|one| format!("{one}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(names: &[&str]) -> String {
        names.iter().map(|name| format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")).collect()
    }

    #[test]
    fn certificates_are_told_apart_whatever_is_between_them() {
        let all = format!("# ours\n{}\n\n{}-----BEGIN CERTIFICATE-----", pem(&["a"]), pem(&["b"]));
        assert_eq!(certificates(&all), [pem(&["a"]).trim(), pem(&["b"]).trim()]);
        assert!(certificates("garbage").is_empty());
    }

    #[test]
    fn the_old_authority_is_trusted_beside_the_new_until_no_replica_serves_with_it() {
        // The authorities that are trusted; those that are needed; lingering; those to write.
        type Row<'a> = (&'a [&'a str], &'a [&'a str], bool, Option<&'a [&'a str]>);
        let table: [Row<'_>; 9] = [
            (&[], &["a"], false, Some(&["a"])),
            (&["a"], &["a"], false, None),
            (&["a"], &["a", "a"], false, None),
            // The replica is about to serve with another authority.
            (&["a"], &["b", "a"], false, Some(&["b", "a"])),
            (&["b", "a"], &["b", "a"], false, None),
            // This replica, at least, serves with the new authority.
            (&["b", "a"], &["b"], true, None),
            (&["b", "a"], &["b"], false, Some(&["b"])),
            // A replica that starts removes no authority that another one may still serve with.
            (&["a"], &["b"], true, Some(&["b", "a"])),
            (&["p", "q", "r", "s"], &["b"], true, Some(&["b", "p", "q", "r"])),
        ];
        for (held, needed, lingering, wanted) in table {
            let needed: Vec<String> = needed.iter().map(|name| pem(&[name])).collect();
            let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
            assert_eq!(ca_bundle(&pem(held), &needed, lingering), wanted.map(pem), "{held:?} {needed:?} {lingering}");
        }
        assert_eq!(ca_bundle("garbage", &[&pem(&["a"])], true), Some(pem(&["a"])));
    }
}
