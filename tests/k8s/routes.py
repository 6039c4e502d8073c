"""A call's path and verb, in the words of a Role's rule."""

from typing import NamedTuple

from tests.k8s.kinds import BY_PATH, Kind
from tests.k8s.refusals import Refusal

REVIEWS = ("selfsubjectaccessreviews", "subjectaccessreviews", "localsubjectaccessreviews", "selfsubjectrulesreviews")


class Route(NamedTuple):
    """Where a path leads.

    Attributes:
        kind: The resource; None for an access review, whose plural is ``resource``.
        resource: Plural, with ``/SUBRESOURCE`` where the path has one.
        name: Empty for the collection.
    """

    kind: Kind | None
    group: str
    resource: str
    namespace: str
    name: str
    subresource: str


def parse_route(path: str) -> Route:
    """The route of a path below /api or /apis.

    Raises:
        Refusal: 404 where no such resource is served.
    """
    parts = path.strip("/").split("/")
    group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = [*rest, "", ""][:3]
    kind = BY_PATH.get((group, version, plural))
    if kind is None and not (group == "authorization.k8s.io" and plural in REVIEWS):
        raise Refusal(404, "NotFound", "the server could not find the requested resource")
    if kind is not None and kind.is_namespaced and name and not namespace:
        raise Refusal(404, "NotFound", "the server could not find the requested resource")
    resource = f"{plural}/{subresource}" if subresource else plural
    return Route(kind, group, resource, namespace, name, subresource)


def verb_of(method: str, route: Route, query: dict[str, str]) -> str:
    """The API's verb for an HTTP method at a route."""
    if method == "GET":
        if query.get("watch", "").lower() in ("true", "1"):
            return "watch"
        return "get" if route.name else "list"
    if method == "DELETE":
        return "delete" if route.name else "deletecollection"
    return {"POST": "create", "PUT": "update", "PATCH": "patch"}[method]
