//! Holds the house to its plan: which room may know which, and no circles. Reads the sources' `crate::` and `super::` paths.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Module path of each file, with its code: no comments, no text of tests.
fn modules() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    let mut left = vec![root.clone()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = module_name(&root, &path);
                if name != "main" && name != "lib" && !name.contains("tests") {
                    found.insert(name, code(&fs::read_to_string(&path).unwrap()));
                }
            }
        }
    }
    found
}

fn module_name(root: &Path, path: &Path) -> String {
    let relative: PathBuf = path.strip_prefix(root).unwrap().with_extension("");
    let parts: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    parts.join("::").trim_end_matches("::mod").to_owned()
}

fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let kept: Vec<&str> = lines.filter(|line| !line.trim_start().starts_with("pub use")).collect();
    kept.join("\n")
}

/// The module that `module` is in; empty for the crate itself.
fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// Every path that begins with `crate::` or `super::`, however often that is repeated, with braces spelled out.
fn paths(module: &str, code: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for marker in ["crate::", "super::"] {
        for (at, _) in code.match_indices(marker) {
            // `xcrate::` would be another word, and a second `super::` belongs to the first.
            let before = code[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || before == '_' || before == ':') {
                continue;
            }
            let (mut base, mut rest) = ("", &code[at..]);
            match rest.strip_prefix("crate::") {
                Some(path) => rest = path,
                None => base = module,
            }
            while let Some(path) = rest.strip_prefix("super::") {
                (base, rest) = (parent(base), path);
            }
            let prefix = if base.is_empty() { String::new() } else { format!("{base}::") };
            spell_out(&prefix, rest, &mut all);
        }
    }
    all
}

fn spell_out(prefix: &str, rest: &str, all: &mut BTreeSet<String>) {
    if let Some(group) = rest.strip_prefix('{') {
        let (mut depth, mut item) = (1, String::new());
        for letter in group.chars() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && letter == ',') {
                spell_out(prefix, item.trim(), all);
                item.clear();
            } else {
                item.push(letter);
            }
            if depth == 0 {
                return;
            }
        }
        return;
    }
    let word: String = rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    let path = format!("{prefix}{word}");
    match rest[word.len()..].strip_prefix("::") {
        Some(deeper) if !word.is_empty() => spell_out(&format!("{path}::"), deeper, all),
        _ => drop(all.insert(path.trim_end_matches("::").to_owned())),
    }
}

/// Which files each file uses.
fn uses(modules: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut graph = BTreeMap::new();
    for (module, code) in modules {
        let mut used = BTreeSet::new();
        for path in paths(module, code) {
            let mut candidate = path.as_str();
            loop {
                if modules.contains_key(candidate) {
                    if candidate != module {
                        used.insert(candidate.to_owned());
                    }
                    break;
                }
                match candidate.rsplit_once("::") {
                    Some((shorter, _)) => candidate = shorter,
                    None => break,
                }
            }
        }
        graph.insert(module.clone(), used);
    }
    graph
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// `module` is `place` or lies in it.
fn within(module: &str, place: &str) -> bool {
    module.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn the_reader_of_paths_reads_what_rust_reads() {
    let code =
        "use crate::{api::{Reason, Shards}, names};\nuse super::{parts::Part, plan};\nlet x = crate::lag::Sample;";
    let found: Vec<String> = paths("controller::apply", code).into_iter().collect();
    assert_eq!(
        found,
        ["api::Reason", "api::Shards", "controller::parts::Part", "controller::plan", "lag::Sample", "names"]
    );
    let code = "use super::super::{parts::Part, plan};\nlet x = super::super::super::lag::Sample;";
    let found: Vec<String> = paths("controller::status::report", code).into_iter().collect();
    assert_eq!(found, ["controller::parts::Part", "controller::plan", "lag::Sample"]);
}

/// Where a code reads the spec of a Projection as it was written, as far as the text shows it: specs of Kubernetes's own objects may be absent, so that a
/// method follows on them.
fn reads_raw_spec(code: &str) -> Option<&str> {
    let line = |at: usize| code[at..].lines().next().unwrap_or_default();
    for word in ["ProjectionSpec", "projection.spec", "Projection { spec"] {
        if let Some(at) = code.find(word) {
            return Some(line(at));
        }
    }
    code.match_indices(".spec.").map(|(at, _)| at).find_map(|at| {
        let field = &code[at + ".spec.".len()..];
        let end = field.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(field.len());
        let own = ["self", "whole"].iter().any(|own| code[..at].ends_with(own));
        (!field[end..].starts_with('(') && !own).then(|| line(at))
    })
}

#[test]
fn only_resolve_reads_what_a_spec_says() {
    assert_eq!(reads_raw_spec("let one = other.spec.lag.target;"), Some(".spec.lag.target;"));
    assert_eq!(reads_raw_spec("let scale = scale.spec.and_then(|spec| spec.replicas);"), None);
    // The simulator's command line changes the spec that it was given, before it is resolved.
    let may = ["api", "resolve", "simulate::command"];
    for (module, code) in modules() {
        let found = reads_raw_spec(&code).filter(|_| !may.iter().any(|place| within(&module, place)));
        assert_eq!(found, None, "{module} reads a spec: let `resolve` say what it means");
    }
}

#[test]
fn no_room_knows_what_it_must_not() {
    let modules = modules();
    let graph = uses(&modules);
    // Who; whom it must not use.
    let never: [(&str, &[&str]); 15] = [
        ("clients", &["sources", "read_stores", "sampler", "controller", "metrics_api", "projector"]),
        ("platform", &["lag", "sources", "read_stores", "controller", "clients", "projector"]),
        (
            "simulate",
            &[
                "snapshot",
                "sampler",
                "metrics_api",
                "sources",
                "read_stores",
                "clients",
                "platform::secrets",
                "app",
                "cli",
            ],
        ),
        (
            "hpa",
            &[
                "api",
                "lag",
                "snapshot",
                "sampler",
                "controller",
                "metrics_api",
                "sources",
                "read_stores",
                "clients",
                "simulate",
            ],
        ),
        ("lag", &["api", "snapshot", "sources", "read_stores", "sampler", "controller", "metrics_api", "clients"]),
        ("api", &["lag", "snapshot", "sampler", "controller", "metrics_api", "sources", "clients"]),
        (
            "metrics_api",
            &[
                "controller",
                "sources",
                "read_stores",
                "sampler",
                "api",
                "snapshot",
                "platform::secrets",
                "platform::delegate_client",
            ],
        ),
        (
            "platform::delegate_client",
            &["controller", "sources", "read_stores", "sampler", "api", "snapshot", "clients"],
        ),
        ("sources", &["controller", "metrics_api", "platform::secrets"]),
        ("read_stores", &["controller", "metrics_api", "platform::secrets"]),
        ("sampler", &["controller", "metrics_api", "platform::secrets", "platform::leader"]),
        ("projector", &["controller", "metrics_api", "sampler", "platform::leader", "platform::secrets"]),
        ("rebuild", &["snapshot", "sampler", "sources", "read_stores", "clients", "controller", "metrics_api"]),
        ("runs", &["snapshot", "sampler", "sources", "read_stores", "clients", "controller", "metrics_api"]),
        ("controller", &["sources", "read_stores", "metrics_api", "clients", "platform::leader", "app"]),
    ];
    for (module, used) in &graph {
        for (who, forbidden) in never {
            let bad: Vec<_> = used
                .iter()
                .filter(|used| within(module, who) && forbidden.iter().any(|place| within(used, place)))
                .collect();
            assert!(bad.is_empty(), "{module} must not use {bad:?}");
        }
        assert!(module == "app" || !used.contains("app"), "{module} uses the composition root");
    }
}

#[test]
fn only_those_who_speak_to_servers_use_clients() {
    // The sampler's tasks and what it opens make what others ask with, and its secrets become settings.
    let may = [
        "sources",
        "read_stores",
        "projector",
        "app",
        "clients",
        "sampler::opened",
        "sampler::source_tasks",
        "sampler::secrets",
    ];
    // These tell servers apart, and speak to none.
    let may_name = ["resolve", "sampler::planner", "sampler::grouping", "sampler::checkpoints", "sampler::stores"];
    let modules = modules();
    for (module, code) in &modules {
        let used = paths(module, code).into_iter().filter(|path| within(path, "clients"));
        let named = may_name.iter().any(|place| within(module, place));
        let allowed = |path: &str| named && ["clients::Endpoint", "clients::ServerKind"].contains(&path);
        let bad: Vec<String> = used.filter(|path| !allowed(path)).collect();
        assert!(may.iter().any(|place| within(module, place)) || bad.is_empty(), "{module} must not use {bad:?}");
    }
}

#[test]
fn every_address_is_judged_before_it_is_connected_to() {
    for (module, code) in modules().into_iter().filter(|(module, _)| within(module, "clients")) {
        // Names are resolved in one place, where what they lead to is judged.
        let resolves =
            ["lookup_host", "TcpStream::connect((", "ToSocketAddrs"].iter().find(|word| code.contains(**word));
        assert!(module == "clients::address" || resolves.is_none(), "{module} resolves names ({resolves:?})");
    }
}

#[test]
fn what_is_pure_knows_no_io() {
    for (module, code) in modules() {
        let writes = ["controller::status::report", "controller::status::writer"].contains(&module.as_str());
        let reports = within(&module, "controller::status") && !writes;
        let plans = within(&module, "controller::plan")
            || reports
            || room(&module) == "resolve"
            || module == "rebuild"
            || ["known", "queue", "parts", "autoscaler"].iter().any(|name| module == format!("controller::{name}"));
        let words: &[&str] = if ["lag", "hpa", "simulate"].contains(&room(&module)) {
            &["kube::", "tokio::", "warp::", "Instant::now", "Timestamp::now", "rand::", "std::fs", "std::net"]
        } else if plans {
            &["Client", "tokio::", "Instant::now", "Timestamp::now", "rand::", ".await", "std::fs"]
        } else if room(&module) == "metrics_api" {
            &["kube::"]
        } else {
            &[]
        };
        for word in words {
            assert!(!code.contains(word), "{module} contains {word}");
        }
    }
}

#[test]
fn only_few_write_to_the_cluster() {
    let may = [
        "controller::apply",
        "controller::status::report",
        "controller::scale",
        "platform::leader",
        "platform::serving_certificate",
        "platform::serving_certificate::own",
        "platform::serving_certificate::takeover",
        "platform::uninstall",
        "platform::delegate_client::tokens",
        "platform::delegated_auth",
    ];
    for (module, code) in modules() {
        for word in ["PatchParams", "PostParams", "DeleteParams", "Patch::"] {
            assert!(!code.contains(word) || may.contains(&module.as_str()), "{module} writes to the cluster ({word})");
        }
    }
}

#[test]
fn there_is_no_circle_of_files() {
    let modules = modules();
    let graph = uses(&modules);
    // A room's face (mod.rs) re-exports its files, and they may use each other's names through it: they count as themselves.
    let edges = |module: &str| -> Vec<String> {
        let is_own_face = |used: &str| module.starts_with(&format!("{used}::"));
        graph[module].iter().filter(|used| !is_own_face(used)).cloned().collect()
    };
    let mut done = BTreeSet::new();
    for start in modules.keys() {
        let mut path = Vec::new();
        visit(start, &edges, &mut path, &mut done);
    }
}

fn visit(module: &str, edges: &dyn Fn(&str) -> Vec<String>, path: &mut Vec<String>, done: &mut BTreeSet<String>) {
    if done.contains(module) {
        return;
    }
    if let Some(begin) = path.iter().position(|passed| passed == module) {
        panic!("a circle: {} → {module}", path[begin..].join(" → "));
    }
    path.push(module.to_owned());
    for used in edges(module) {
        visit(&used, edges, path, done);
    }
    path.pop();
    done.insert(module.to_owned());
}

#[test]
fn no_file_is_longer_than_a_sitting() {
    // Tests count, too; a little more than the 400 lines aimed at.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for module in modules().keys() {
        let path = root.join(module.replace("::", "/"));
        let file = [path.with_extension("rs"), path.join("mod.rs")].into_iter().find(|file| file.exists()).unwrap();
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 500, "{module} has {lines} lines");
    }
}

#[test]
fn the_chart_grants_every_metric_and_no_other() {
    let helpers = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/projectionist/templates/_helpers.tpl");
    let helpers = fs::read_to_string(helpers).unwrap();
    let names = helpers.split("define \"projectionist.metricNames\"").nth(1).unwrap().split("{{- end").next().unwrap();
    let granted: Vec<&str> = names.lines().filter_map(|line| line.strip_prefix("- ")).collect();
    let served: Vec<&str> =
        projectionist::metrics::Metric::ALL.into_iter().map(projectionist::metrics::Metric::object_name).collect();
    assert_eq!(granted, served);
}
