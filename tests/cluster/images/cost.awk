# From a linker map of lld: how much code of a binary belongs to each kind of server. What several share, as TLS and HTTP, belongs to none.
function number(hex,    at, sum) {
    for (at = 1; at <= length(hex); at++) sum = sum * 16 + index("0123456789abcdef", substr(hex, at, 1)) - 1
    return sum
}
BEGIN {
    crates["postgres"] = "tokio_postgres|postgres_protocol|postgres_types"
    crates["kafka"] = "kacrab_protocol"
    crates["kurrentdb"] = "5prost"
    crates["scrape"] = "prometheus_parse"
}
/:\(\.text[^)]*\)/ {
    size = number($3)
    if (match($0, /(clients|sources|read_stores)[0-9]+[a-z]+/)) {
        kind = substr($0, RSTART, RLENGTH)
        sub(/^[a-z_]+/, "", kind)
        letters = kind + 0
        sub(/^[0-9]+/, "", kind)
        if (length(kind) >= letters) { cost[substr(kind, 1, letters)] += size; next }
    }
    for (kind in crates) if ($0 ~ crates[kind]) { cost[kind] += size; next }
}
END {
    for (kind in cost) if (cost[kind] >= 20000) printf "  code of %-16s %5.0f KiB\n", kind, cost[kind] / 1024 | "sort -k4 -n -r"
}
