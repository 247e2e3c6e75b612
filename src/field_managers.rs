//! Which field manager wrote a field of an object, as the API server keeps it in `metadata.managedFields`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The managers that own the field at this JSON pointer in the form of `fieldsV1`, such as `/f:spec/f:replicas`. An entry may name none.
pub fn managers_of<'a>(metadata: &'a ObjectMeta, field: &'a str) -> impl Iterator<Item = Option<&'a str>> {
    let entries = metadata.managed_fields.iter().flatten();
    let owning =
        entries.filter(move |entry| entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(field).is_some()));
    owning.map(|entry| entry.manager.as_deref())
}
