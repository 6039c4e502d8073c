"""Stacks as code: what a stack's file asks for, what ZenML holds, and the difference carried out.

Everything goes through ZenML's client. A second application finds nothing to change. Credentials never pass through
here: S3 takes them from the environment of whoever reads it, and a tracking server with a login names a ZenML secret.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.exceptions import EntityExistsError
from zenml.stack.utils import validate_stack_component_config
from zenml.utils.secret_utils import is_secret_field, is_secret_reference

from cluster.flavors import PATIENT, TRACKER, base_of, register
from cluster.kubeflow_flavor import FLAVOR, PlacedKubeflowConfig, register_flavor
from proxykd.config.stack import ClusterStackSpec, KubeflowStackSpec, S3StoreSpec, StackSpec
from proxykd.exceptions import ConfigError
from proxykd.workspace import Workspace

LABELS = {"part-of": "proxykd"}
"""What marks a stack of ZenML's as one of ours."""

ANONYMOUS = "anonymous"
"""Token for a tracking server without a login: ZenML insists on one, and such a server reads none."""

_HIDDEN = "(a secret)"


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a stack.

    Attributes:
        kind: ZenML's type of component.
        flavor: ZenML's implementation of it.
        name: Under which it is registered; says stack and flavor, so that no two that differ share one.
        configuration: Its settings, without secrets.
    """

    kind: str
    flavor: str
    name: str
    configuration: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the difference.

    Attributes:
        component: Type of the component, or "stack".
        key: The setting that changes.
        old: What ZenML holds; "" = nothing.
        new: What the file asks for; "" = nothing.
    """

    component: str
    key: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Standing:
    """A stack as ZenML holds it.

    Attributes:
        name: Of the stack.
        components: Type of component -> flavor, name and settings for people, secrets left out.
        is_ours: Whether `proxykd stack apply` made it.
        is_active: Whether commands without --stack run there.
    """

    name: str
    components: tuple[Component, ...]
    is_ours: bool
    is_active: bool


def components_of(stack: StackSpec) -> tuple[Component, ...]:
    """The components that a stack's file asks for."""
    parts = [("orchestrator", *_orchestrator(stack)), ("artifact_store", *_artifact_store(stack))]
    if isinstance(stack, ClusterStackSpec):
        parts += [("container_registry", "default", {"uri": stack.container_registry}), ("image_builder", "local", {})]
    parts.append(("experiment_tracker", TRACKER, _tracker(stack)))
    return tuple(Component(kind, flavor, f"{stack.name}-{flavor}", settings) for kind, flavor, settings in parts)


def _orchestrator(stack: StackSpec) -> tuple[str, dict[str, Any]]:
    if not isinstance(stack, ClusterStackSpec):
        return "local", {}
    if isinstance(stack, KubeflowStackSpec):
        # ZenML would take the context before the address.
        context = stack.context if stack.hostname is None else None
        place = {"kubeflow_namespace": stack.pipelines_namespace, "kubernetes_context": context}
        return FLAVOR, _told({**place, "kubeflow_hostname": stack.hostname, "synchronous": False})
    return PATIENT, _told(
        {
            "kubernetes_context": stack.context,
            "incluster": stack.context is None,
            "kubernetes_namespace": stack.namespace,
            # Otherwise ZenML binds ClusterRole edit, and its token stands readable in every pod's environment.
            "service_account_name": stack.service_accounts.orchestrator,
            "step_pod_service_account_name": stack.service_accounts.step,
            "pass_zenml_token_as_secret": True,
            "synchronous": False,
            "local": stack.is_on_this_machine,
            "skip_local_validations": stack.is_on_this_machine,
        }
    )


def _artifact_store(stack: StackSpec) -> tuple[str, dict[str, Any]]:
    store = stack.artifact_store
    if not isinstance(store, S3StoreSpec):
        return "local", _told({"path": None if store.path is None else str(store.path)})
    client = _told({"endpoint_url": store.endpoint_url, "region_name": store.region})
    return "s3", _told({"path": store.path.rstrip("/"), "client_kwargs": client or None})


def _tracker(stack: StackSpec) -> dict[str, Any]:
    uri = stack.tracking_uri or Workspace.default().mlflow_uri
    if stack.tracking_secret is None:
        return {"tracking_uri": uri, **({"tracking_token": ANONYMOUS} if uri.startswith("http") else {})}
    keys = set(_secret_values(stack.tracking_secret))
    for wanted in ({"token"}, {"username", "password"}):
        if wanted <= keys:
            return {"tracking_uri": uri} | {
                f"tracking_{key}": f"{{{{{stack.tracking_secret}.{key}}}}}" for key in sorted(wanted)
            }
    raise ConfigError(
        f"expected the key token, or username and password, in the ZenML secret {stack.tracking_secret}, found "
        f"{sorted(keys) or 'no such secret'}; make it with `zenml secret create {stack.tracking_secret} --token=...`"
    )


def _secret_values(name: str) -> Mapping[str, Any]:
    try:
        values: Mapping[str, Any] = Client().get_secret(name, allow_partial_name_match=False).values
    except KeyError:
        return {}
    return values


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def compare(stack: StackSpec) -> list[Change]:
    """What would have to change so that ZenML holds the stack as its file says; nothing is changed."""
    with _quiet():
        registered = _stack_named(stack.name)
        members = {} if registered is None else {str(kind.value): parts[0].name for kind, parts in _parts(registered)}
        changes = [] if registered is not None else [Change("stack", "name", "", stack.name)]
        wanted = components_of(stack)
        for component in wanted:
            changes += _compare_component(component)
            if members.get(component.kind) != component.name:
                changes.append(Change("stack", component.kind, members.get(component.kind, ""), component.name))
        gone = set(members) - {component.kind for component in wanted}
        return changes + [Change("stack", kind, members[kind], "") for kind in sorted(gone)]


def _compare_component(component: Component) -> list[Change]:
    found = _component_named(component)
    old = {} if found is None else dict(found.configuration)
    new, config_class = _validated(component)
    fields = config_class.model_fields
    changes = [] if found is not None else [Change(component.kind, "flavor", "", component.flavor)]
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            before, after = (_shown(fields.get(key), values.get(key)) for values in (old, new))
            changes.append(Change(component.kind, key, before, after))
    return changes


def _shown(config_field: Any, value: Any) -> str:
    """A setting for people; secrets by name, and those that somebody wrote down plainly not at all."""
    if value is None:
        return ""
    if is_secret_reference(value):
        return f"secret {value.strip('{} ')}"
    if config_field is not None and is_secret_field(config_field) and value != ANONYMOUS:
        return _HIDDEN
    return str(value)


def _validated(component: Component) -> tuple[dict[str, Any], Any]:
    """The settings as ZenML will keep them, and the class that checked them."""
    try:
        if component.flavor == FLAVOR:  # which ZenML may not know yet
            config: Any = PlacedKubeflowConfig.model_validate(dict(component.configuration))
            return dict(config.model_dump(mode="json", exclude_unset=True)), PlacedKubeflowConfig
        config = validate_stack_component_config(
            configuration_dict=dict(component.configuration),
            flavor=base_of(component.flavor),
            component_type=StackComponentType(component.kind),
            validate_custom_flavors=True,
        )
    except (ImportError, KeyError) as error:
        raise ConfigError(
            f"ZenML cannot use the {component.kind} {component.flavor!r}: {error}; install the checkout with the "
            "extras `pipeline` and `cluster` (kubeflow: `kubeflow` too)"
        ) from error
    except ValueError as error:
        raise ConfigError(f"ZenML refuses the {component.kind} {component.name}: {error}") from error
    return dict(config.model_dump(mode="json", exclude_unset=True)), type(config)


def apply(stack: StackSpec) -> None:
    """Register or update the stack's components, then the stack; safe to repeat and to run twice at once."""
    with _quiet():
        wanted = components_of(stack)
        for component in wanted:
            _apply_component(component)
        chosen = {StackComponentType(component.kind): component.name for component in wanted}
        if (registered := _stack_named(stack.name)) is None:
            try:
                Client().create_stack(stack.name, chosen, labels=dict(LABELS))
                return
            except EntityExistsError:  # somebody else was applying it
                registered = _stack_named(stack.name)
        former = [parts[0] for _, parts in _parts(registered)]
        empty: dict[Any, list[Any]] = {kind: [] for kind, _ in _parts(registered) if kind not in chosen}
        Client().update_stack(stack.name, component_updates={**chosen, **empty}, labels=dict(LABELS))
        _remove_unused(
            [one for one in former if one.name.startswith(f"{stack.name}-") and chosen.get(one.type) != one.name]
        )


def _apply_component(component: Component) -> None:
    client, kind = Client(), StackComponentType(component.kind)
    settings, _ = _validated(component)
    if component.flavor == FLAVOR:
        register_flavor()
    register(client, component.flavor, kind)
    if (found := _component_named(component)) is None:
        try:
            client.create_stack_component(component.name, component.flavor, kind, settings, labels=dict(LABELS))
            return
        except EntityExistsError:
            found = _component_named(component)
    old = dict(found.configuration) if found is not None else {}
    if old != settings:
        removed = dict.fromkeys(old.keys() - settings.keys())
        client.update_stack_component(component.name, kind, configuration={**settings, **removed})


def _remove_unused(parts: list[Any]) -> None:
    for part in parts:
        if not Client().list_stacks(component_id=part.id).total:
            Client().delete_stack_component(part.id, part.type)


def standings() -> list[Standing]:
    """All stacks that ZenML holds, by name."""
    with _quiet():
        client = Client()
        active = client.active_stack_model.id
        found = [one for page in _pages(client) for one in page]
        return sorted((_standing(one, active) for one in found), key=lambda one: one.name)


def standing(name: str) -> Standing:
    """One stack.

    Raises:
        ConfigError: if ZenML holds none of that name.
    """
    with _quiet():
        return _standing(_required(name), Client().active_stack_model.id)


def delete(name: str) -> None:
    """Remove a stack that `proxykd stack apply` made, and those of its components that no other stack uses.

    Raises:
        ConfigError: if ZenML holds none of that name, or another made it, or commands run there by default.
    """
    with _quiet():
        registered = _required(name)
        if not _is_ours(registered):
            raise ConfigError(
                f"the stack {name} was not made by `proxykd stack apply`: remove it with ZenML's own means"
            )
        parts = [parts[0] for _, parts in _parts(registered)]
        try:
            Client().delete_stack(name)
        except ValueError as error:
            raise ConfigError(f"the stack {name} is ZenML's active one: `zenml stack set default` first") from error
        _remove_unused(parts)


def stack_id(stack: StackSpec) -> str:
    """ZenML's identity of an applied stack, for ``ZENML_ACTIVE_STACK_ID``.

    Raises:
        ConfigError: if it is not registered, or not as its file says.
    """
    if changes := compare(stack):
        keys = ", ".join(f"{change.component}.{change.key}" for change in changes[:5])
        raise ConfigError(
            f"expected ZenML to hold the stack {stack.name} as its file says, but {len(changes)} settings differ "
            f"({keys}{', ...' if len(changes) > 5 else ''}); run `proxykd stack apply` first"
        )
    with _quiet():
        return str(_required(stack.name).id)


def orchestrator_id(stack: StackSpec) -> str:
    """ZenML's identity of an applied stack's orchestrator, by which a run is known to be the stack's.

    Raises:
        ConfigError: if the stack is not registered, or not as its file says.
    """
    stack_id(stack)
    with _quiet():
        return str(_required(stack.name).components[StackComponentType.ORCHESTRATOR][0].id)


def _pages(client: Any) -> Iterator[Any]:
    number = 1
    while True:
        page = client.list_stacks(page=number, hydrate=True)
        yield page.items
        if number >= page.total_pages:
            return
        number += 1


def _standing(stack: Any, active: Any) -> Standing:
    parts = []
    for kind, (first, *_) in _parts(stack):
        component = Client().get_stack_component(kind, first.id)
        fields = _fields_of(component)
        shown = {key: _shown(fields.get(key), value) for key, value in component.configuration.items()}
        parts.append(Component(kind.value, component.flavor_name, component.name, shown))
    return Standing(stack.name, tuple(parts), _is_ours(stack), stack.id == active)


def _fields_of(component: Any) -> Mapping[str, Any]:
    from zenml.stack.flavor import Flavor

    fields: Mapping[str, Any] = Flavor.from_model(component.flavor).config_class.model_fields
    return fields


def _is_ours(stack: Any) -> bool:
    return (stack.labels or {}).items() >= LABELS.items()


def _parts(stack: Any) -> list[tuple[Any, list[Any]]]:
    return sorted(
        ((kind, parts) for kind, parts in stack.components.items() if parts), key=lambda item: str(item[0].value)
    )


def _stack_named(name: str) -> Any:
    try:
        return Client().get_stack(name, allow_name_prefix_match=False)
    except KeyError:
        return None


def _required(name: str) -> Any:
    if (found := _stack_named(name)) is None:
        raise ConfigError(
            f"expected a stack that ZenML holds, got {name!r}; `proxykd stack list` names them, `proxykd stack apply` "
            "registers one"
        )
    return found


def _component_named(component: Component) -> Any:
    try:
        return Client().get_stack_component(
            StackComponentType(component.kind), component.name, allow_name_prefix_match=False
        )
    except KeyError:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """ZenML warns and tells on standard error what our own words say."""
    logger = logging.getLogger("zenml")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(former)
