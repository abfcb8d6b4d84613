def _refuse_both() -> None:
    """Two distributions hold the package ``alp``: in one environment one's files would stand before the other's."""
    from importlib import metadata

    try:
        metadata.distribution("alp")
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        "alp and alp-policy are both installed, and alp has all that alp-policy has:"
        " pip uninstall alp-policy, then install alp again"
    )


_refuse_both()
