//! The requests that are made, and the versions of each that this code is written for.

use bytes::{Bytes, BytesMut};
use kacrab_protocol::{
    Result,
    generated::{
        ApiKey, ApiVersionsRequestData, ApiVersionsResponseData, DescribeConfigsRequestData,
        DescribeConfigsResponseData, FetchRequestData, FetchResponseData, FindCoordinatorRequestData,
        FindCoordinatorResponseData, ListOffsetsRequestData, ListOffsetsResponseData, MetadataRequestData,
        MetadataResponseData, OffsetCommitRequestData, OffsetCommitResponseData, OffsetFetchRequestData,
        OffsetFetchResponseData, SaslAuthenticateRequestData, SaslAuthenticateResponseData, SaslHandshakeRequestData,
        SaslHandshakeResponseData,
    },
};

/// A request with its reply.
pub(super) trait Call {
    /// Which.
    const KEY: ApiKey;
    /// The name in the protocol, for messages.
    const NAME: &'static str;
    /// The oldest version that says what is needed.
    const OLDEST: i16;
    /// The newest version that is used.
    const NEWEST: i16;
    /// The answer.
    type Reply;

    /// Writes the body.
    fn write(&self, buffer: &mut BytesMut, version: i16) -> Result<()>;
    /// Reads the answer's body.
    fn read(buffer: &mut Bytes, version: i16) -> Result<Self::Reply>;
}

macro_rules! call {
    ($request:ty => $reply:ty, $key:ident, $oldest:literal..=$newest:literal) => {
        impl Call for $request {
            const KEY: ApiKey = ApiKey::$key;
            const NAME: &'static str = stringify!($key);
            const OLDEST: i16 = $oldest;
            const NEWEST: i16 = $newest;
            type Reply = $reply;

            fn write(&self, buffer: &mut BytesMut, version: i16) -> Result<()> {
                self.write(buffer, version)
            }

            fn read(buffer: &mut Bytes, version: i16) -> Result<Self::Reply> {
                <$reply>::read(buffer, version)
            }
        }
    };
}

call!(ApiVersionsRequestData => ApiVersionsResponseData, ApiVersions, 0..=0);
call!(SaslHandshakeRequestData => SaslHandshakeResponseData, SaslHandshake, 1..=1);
call!(SaslAuthenticateRequestData => SaslAuthenticateResponseData, SaslAuthenticate, 0..=2);
// From 4 on, asking for a topic need not create it. From 10 on, a topic has an identity of its own.
call!(MetadataRequestData => MetadataResponseData, Metadata, 4..=12);
// From 4 on, many groups in one request.
call!(FindCoordinatorRequestData => FindCoordinatorResponseData, FindCoordinator, 1..=4);
// From 8 on, many groups in one request; 10 knows topics by their identity only.
call!(OffsetFetchRequestData => OffsetFetchResponseData, OffsetFetch, 2..=9);
// From 2 on, with an isolation level.
call!(ListOffsetsRequestData => ListOffsetsResponseData, ListOffsets, 2..=7);
// From 13 on, topics are known by their identity only: see `read`.
call!(FetchRequestData => FetchResponseData, Fetch, 5..=12);
call!(DescribeConfigsRequestData => DescribeConfigsResponseData, DescribeConfigs, 1..=4);
// From 2 on, without a time that the client gives; 10 knows topics by their identity only.
call!(OffsetCommitRequestData => OffsetCommitResponseData, OffsetCommit, 2..=8);
