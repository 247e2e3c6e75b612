//! Authorization: attributes of a request, and the cluster's answers, cached for a moment.

use std::{
    fmt,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{ReviewError, Reviews, User, authn::TOKEN_CACHED_FOR, awaiting::VERSION, recent::RecentMap};
use crate::names::GROUP;

/// How long an answer holds, allowed or not.
const CACHED_FOR: Duration = Duration::from_secs(10);
/// At most so many answers of each kind are remembered.
const MOST_CACHED: usize = 4096;
/// A review that takes longer has failed.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(6);
/// The most reviews in progress at once. A client that invents tokens can occupy only the share of the token reviews, so that callers with a client
/// certificate are not kept waiting.
const MOST_ACCESS_REVIEWS: usize = 32;
const MOST_TOKEN_REVIEWS: usize = 8;
/// For each review in progress, at most this many requests wait: each holds a request and its headers in memory.
const MOST_WAITING: usize = 32;
/// The group that may do everything without a review, so that the aggregator is answered even while the API server is busy.
const MASTERS: &str = "system:masters";

/// What a request wants to read, in the terms of RBAC.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Attributes {
    /// A resource.
    Resource(ResourceAttributes),
    /// A path that is no resource.
    Path(String),
}

/// A resource; what a request does not name is empty.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ResourceAttributes {
    /// The API group.
    pub group: String,
    /// Its version.
    pub version: String,
    /// The namespace.
    pub namespace: String,
    /// The resource: the metric itself, or the objects that have it.
    pub resource: String,
    /// The object; `*` where all are asked for.
    pub name: String,
    /// What is read of the object: its metric.
    pub subresource: String,
}

impl Attributes {
    /// The verb in RBAC's terms: `get` for a request with a name, `list` for one without.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Resource(resource) if resource.name.is_empty() => "list",
            Self::Resource(_) | Self::Path(_) => "get",
        }
    }

    /// Reads a path as the API server does, which authorizes the same request before it forwards it to this server (`NewRequestInfo` in
    /// k8s.io/apiserver/pkg/endpoints/request): `/apis/GROUP/VERSION[/namespaces/NAMESPACE]/RESOURCE[/NAME[/SUBRESOURCE]]` is a resource, and a
    /// shorter path is none. So a role means the same at both servers.
    ///
    /// Requests that change something are authorized as reads, and then refused to every caller.
    pub(super) fn of(segments: &[&str]) -> Self {
        // Slashes at the end do not count.
        let end = segments.iter().rposition(|segment| !segment.is_empty()).map_or(0, |last| last + 1);
        let (group, version, rest) = match &segments[..end] {
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            // The operator's own API, which no API server forwards to.
            [VERSION, rest @ ..] => (GROUP, VERSION, rest),
            _ => return Self::path(segments),
        };
        let (namespace, rest) = match rest {
            [] => return Self::path(segments),
            // The namespace's own subresources. A metric with one of these names could never be granted.
            ["namespaces", namespace] | ["namespaces", namespace, "status" | "finalize", ..] => (*namespace, rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
        Self::Resource(ResourceAttributes {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace: namespace.to_owned(),
            resource: part(0),
            name: part(1),
            subresource: part(2),
        })
    }

    fn path(segments: &[&str]) -> Self {
        Self::Path(format!("/{}", segments.join("/")))
    }
}

/// In the words in which the API server refuses.
impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{} path {path:?}", self.verb()),
            Self::Resource(ResourceAttributes { group, version: _, namespace, resource, name: _, subresource }) => {
                let separator = if subresource.is_empty() { "" } else { "/" };
                let resource = format!("{resource}{separator}{subresource}");
                write!(f, "{} resource {resource:?} in API group {group:?}", self.verb())?;
                if namespace.is_empty() {
                    f.write_str(" at the cluster scope")
                } else {
                    write!(f, " in the namespace {namespace:?}")
                }
            }
        }
    }
}

/// Asks the cluster, and remembers what it said.
pub(super) struct Gate<R> {
    reviews: R,
    access: Remembered<(User, Attributes), Result<(), String>>,
    tokens: Remembered<String, Option<User>>,
    access_room: Questions,
    token_room: Questions,
}

impl<R: Reviews> Gate<R> {
    pub(super) fn new(reviews: R) -> Self {
        Self {
            reviews,
            access: Remembered::default(),
            tokens: Remembered::default(),
            access_room: Questions::new(MOST_ACCESS_REVIEWS),
            token_room: Questions::new(MOST_TOKEN_REVIEWS),
        }
    }

    /// Whether the user is authorized; an error does not authorize.
    pub(super) async fn may(&self, user: &User, attributes: &Attributes) -> Result<Result<(), String>, ReviewError> {
        if user.groups.contains(MASTERS) {
            return Ok(Ok(()));
        }
        let question = (user.clone(), attributes.clone());
        if let Some(answer) = self.access.get(&question, CACHED_FOR) {
            return Ok(answer);
        }
        let answer = self.access_room.ask(self.reviews.may(user, attributes)).await?;
        self.access.put(question, answer.clone());
        Ok(answer)
    }

    /// The user of this token, where the cluster was asked a moment ago.
    pub(super) fn known_by_token(&self, token: &str) -> Option<User> {
        self.tokens.get(&token.to_owned(), TOKEN_CACHED_FOR).flatten()
    }

    /// The user of this token; `None` if the token is not valid.
    pub(super) async fn user_of_token(&self, token: &str) -> Result<Option<User>, ReviewError> {
        if let Some(user) = self.tokens.get(&token.to_owned(), TOKEN_CACHED_FOR) {
            return Ok(user);
        }
        let user = self.token_room.ask(self.reviews.user_of_token(token)).await?;
        // A caller without a name is not identified.
        let user = user.filter(|user| !user.name.is_empty()).map(User::authenticated);
        self.tokens.put(token.to_owned(), user.clone());
        Ok(user)
    }
}

/// Reviews of one kind: bounds how many are in progress, how many wait, and how long each takes.
struct Questions {
    waiting: Semaphore,
    asked: Semaphore,
}

impl Questions {
    fn new(at_once: usize) -> Self {
        Self { waiting: Semaphore::new(at_once * (1 + MOST_WAITING)), asked: Semaphore::new(at_once) }
    }

    async fn ask<T>(&self, review: impl Future<Output = Result<T, ReviewError>>) -> Result<T, ReviewError> {
        let full = |_| ReviewError("too many questions wait for an answer".to_owned());
        let _waiting = self.waiting.try_acquire().map_err(full)?;
        let asked = async {
            let _asked =
                self.asked.acquire().await.map_err(|_| ReviewError("no more questions are asked".to_owned()))?;
            review.await
        };
        let late = |_| ReviewError(format!("there was no answer within {} s", REVIEW_TIMEOUT.as_secs()));
        tokio::time::timeout(REVIEW_TIMEOUT, asked).await.map_err(late)?
    }
}

/// Answers, each with the time when it came.
struct Remembered<K, V>(Mutex<RecentMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::new(RecentMap::new(MOST_CACHED)))
    }
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K, lasts: Duration) -> Option<V> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(since, _)| since.elapsed() < lasts).map(|(_, answer)| answer.clone())
    }

    fn put(&self, key: K, answer: V) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(key, (Instant::now(), answer));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::BoxFuture;

    use super::*;

    #[derive(Default)]
    struct Cluster {
        asked: AtomicU32,
        down: bool,
    }

    impl Reviews for Cluster {
        fn user_of_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let user = (token == "good").then(|| User { name: "ann".to_owned(), ..User::default() });
            Box::pin(async move { Ok(user) })
        }

        fn may<'a>(
            &'a self,
            user: &'a User,
            _: &'a Attributes,
        ) -> BoxFuture<'a, Result<Result<(), String>, ReviewError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = if user.name == "ann" { Ok(()) } else { Err("no".to_owned()) };
            Box::pin(async move { if self.down { Err(ReviewError("down".to_owned())) } else { Ok(answer) } })
        }
    }

    fn user(name: &str, groups: &[&str]) -> User {
        User {
            name: name.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..User::default()
        }
    }

    fn path() -> Attributes {
        Attributes::Path("/apis".to_owned())
    }

    fn attributes(path: &str) -> Attributes {
        Attributes::of(&path.split('/').skip(1).collect::<Vec<_>>())
    }

    #[test]
    fn a_path_is_judged_as_the_api_server_judges_it() {
        // Path; verb, namespace, resource, name, subresource.
        for (path, expected) in [
            ("/namespaces/shop/lag", ["list", "shop", "lag", "", ""]),
            ("/namespaces/shop/lag/", ["list", "shop", "lag", "", ""]),
            ("/namespaces/shop/things.example.org/first/lag", ["get", "shop", "things.example.org", "first", "lag"]),
            ("/namespaces/shop/things.example.org/*/lag", ["get", "shop", "things.example.org", "*", "lag"]),
            (
                "/namespaces/shop/things.example.org/first/lag/more",
                ["get", "shop", "things.example.org", "first", "lag"],
            ),
            ("/namespaces/shop", ["get", "shop", "namespaces", "shop", ""]),
            ("/namespaces/shop/status", ["get", "shop", "namespaces", "shop", "status"]),
            ("/namespaces", ["list", "", "namespaces", "", ""]),
            ("/nodes/foo", ["get", "", "nodes", "foo", ""]),
            ("/blah", ["list", "", "blah", "", ""]),
        ] {
            let attributes = attributes(&format!("/apis/custom.metrics.k8s.io/v1beta2{path}"));
            let Attributes::Resource(resource) = &attributes else { panic!("{path} is no resource") };
            let ResourceAttributes { group, version, namespace, resource, name, subresource } = resource;
            assert_eq!((group.as_str(), version.as_str()), ("custom.metrics.k8s.io", "v1beta2"));
            assert_eq!([attributes.verb(), namespace, resource, name, subresource], expected, "{path}");
        }
        for path in ["/", "/apis", "/apis/", "/apis/g", "/apis/g/v", "/apis/g/v/", "/openapi/v3/apis/g/v", "/healthz"] {
            assert_eq!(attributes(path), Attributes::Path(path.to_owned()));
        }
    }

    #[test]
    fn a_refusal_names_what_was_asked_in_the_words_of_the_api_server() {
        for (path, words) in [
            ("/apis/g/v/namespaces/shop/lag", "list resource \"lag\" in API group \"g\" in the namespace \"shop\""),
            (
                "/apis/g/v/namespaces/shop/things/first/lag",
                "get resource \"things/lag\" in API group \"g\" in the namespace \"shop\"",
            ),
            (
                "/v1/namespaces/shop/projections/orders/await",
                "get resource \"projections/await\" in API group \"projectionist.dev\" in the namespace \"shop\"",
            ),
            ("/apis/g/v/things", "list resource \"things\" in API group \"g\" at the cluster scope"),
            ("/apis", "get path \"/apis\""),
        ] {
            assert_eq!(attributes(path).to_string(), words);
        }
    }

    #[tokio::test]
    async fn the_cluster_is_asked_once_for_a_yes_and_once_for_a_no() {
        let gate = Gate::new(Cluster::default());
        for _ in 0..5 {
            assert_eq!(gate.may(&user("ann", &[]), &path()).await.unwrap(), Ok(()));
            assert_eq!(gate.may(&user("bob", &[]), &path()).await.unwrap(), Err("no".to_owned()));
        }
        assert_eq!(gate.reviews.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn another_group_is_another_question() {
        let gate = Gate::new(Cluster::default());
        gate.may(&user("ann", &["a"]), &path()).await.unwrap().unwrap();
        gate.may(&user("ann", &["b"]), &path()).await.unwrap().unwrap();
        assert_eq!(gate.reviews.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn no_answer_is_not_a_yes_and_is_not_remembered() {
        let gate = Gate::new(Cluster { down: true, ..Cluster::default() });
        for _ in 0..3 {
            assert!(gate.may(&user("ann", &[]), &path()).await.is_err());
        }
        assert_eq!(gate.reviews.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn masters_need_not_be_looked_up() {
        let gate = Gate::new(Cluster { down: true, ..Cluster::default() });
        assert_eq!(gate.may(&user("kube-aggregator", &[MASTERS]), &path()).await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_wrong_token_has_no_user() {
        let gate = Gate::new(Cluster::default());
        assert_eq!(gate.user_of_token("bad").await.unwrap(), None);
        assert_eq!(gate.user_of_token("good").await.unwrap().unwrap().name, "ann");
    }

    #[test]
    fn the_memory_is_bounded_and_a_flood_does_not_keep_the_newest_out() {
        let remembered = Remembered::default();
        for key in 0..3 * MOST_CACHED {
            remembered.put(key, ());
            assert_eq!(remembered.get(&key, Duration::from_secs(60)), Some(()));
        }
        assert_eq!(remembered.get(&0, Duration::from_secs(60)), None);
    }

    #[test]
    fn an_answer_is_not_remembered_for_ever() {
        let remembered = Remembered::default();
        remembered.put("key", ());
        assert_eq!(remembered.get(&"key", Duration::ZERO), None);
    }

    struct Hanging;

    impl Reviews for Hanging {
        fn user_of_token<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>> {
            Box::pin(std::future::pending())
        }

        fn may<'a>(&'a self, _: &'a User, _: &'a Attributes) -> BoxFuture<'a, Result<Result<(), String>, ReviewError>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_hangs_is_not_waited_for() {
        let gate = Gate::new(Hanging);
        let start = tokio::time::Instant::now();
        assert!(gate.may(&user("ann", &[]), &path()).await.is_err());
        assert_eq!(start.elapsed().as_secs(), REVIEW_TIMEOUT.as_secs(), "on the test's own clock");
    }
}
