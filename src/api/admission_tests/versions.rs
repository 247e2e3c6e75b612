//! What is refused of versions of a read model, also of a change.

use super::*;

fn in_version(version: &str, schema: &str) -> Value {
    let mut object = projection();
    object["spec"]["readStore"]["postgres"]["schema"] = json!(schema);
    object["spec"]["version"] = json!(version);
    object
}

/// What the rules say of a change.
fn refused_change(before: &Value, after: &Value) -> Vec<String> {
    let broken = Validator::new().validate(&schema(), after, Some(before)).err();
    let broken = broken.into_iter().flat_map(|broken| broken.into_vec());
    broken.map(|error| error.message).filter(|message| message.contains("version")).collect()
}

#[test]
fn a_version_is_a_part_of_names() {
    for version in ["v1", "2", "2026-11-27", "a-b"] {
        assert_eq!(admit(in_version(version, "orders")).unwrap().spec.version.as_deref(), Some(version));
    }
    for (version, expected) in [
        ("V1", "spec.version must match"),
        ("v1.2", "spec.version must match"),
        ("-v1", "spec.version must match"),
        ("", "spec.version must have at least 1 characters"),
        ("unversioned", "spec.version must not be \"unversioned\""),
    ] {
        let found = admit(in_version(version, "orders")).expect_err(version);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
    }
    let mut long = in_version(&"v".repeat(20), "orders");
    long["metadata"]["name"] = json!("o".repeat(31));
    admit(long.clone()).unwrap();
    long["metadata"]["name"] = json!("o".repeat(32));
    let found = admit(long).unwrap_err();
    let expected = "spec.version and metadata.name must have at most 51 characters together";
    assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{found:?}");
}

#[test]
fn a_place_that_is_named_by_the_version_needs_one_and_keeps_it() {
    admit(in_version("v1", "orders_{version}")).unwrap();
    let mut without = in_version("v1", "orders_{version}");
    without["spec"].as_object_mut().unwrap().remove("version");
    let found = admit(without).unwrap_err();
    let expected = "spec.version is required where spec.readStore.postgres.schema holds {version}";
    assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{found:?}");
    let (first, second) = (in_version("v1", "orders_{version}"), in_version("v2", "orders_{version}"));
    let refused = refused_change(&first, &second);
    assert!(refused.iter().any(|message| message.starts_with("spec.version cannot be changed where")), "{refused:?}");
    assert_eq!(refused_change(&first, &first), [""; 0]);
    assert_eq!(refused_change(&in_version("v1", "orders"), &in_version("v2", "orders")), [""; 0], "a name alone");
}
